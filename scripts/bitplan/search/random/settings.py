"""The settings of random plans."""

from typing import Any, Literal

from pydantic import Field, field_validator

from bitplan.plans.layer_plan import LayerPlan
from bitplan.search.plan_settings import RoundablePlan


class RandomPlan(RoundablePlan):
    """A random plan."""

    method: Literal["random"]
    mxfp4_ratio: float = Field(0.3, ge=0, le=1, description="share of layers in mxfp4")
    bf16_ratio: float = Field(0.2, ge=0, le=1, description="share of layers in bf16")
    seed: int = Field(42, ge=0, description="the same seed gives the same plan")
    group_size: int = Field(32, ge=1, description="values per block")

    @field_validator("bf16_ratio")
    @classmethod
    def _fits(cls, value: float, info: Any) -> float:
        if value + info.data.get("mxfp4_ratio", 0) > 1 + 1e-12:
            raise ValueError("mxfp4_ratio and bf16_ratio add up to more than 1")
        return value

    def given_formats(self, settings: Any) -> list[LayerPlan]:
        """Return mxfp4, which a share of the layers gets."""
        return [LayerPlan("mxfp4", group_size=self.group_size)] if self.mxfp4_ratio else []
