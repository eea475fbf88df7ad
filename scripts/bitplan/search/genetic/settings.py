"""The settings of genetic plans."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bitplan.core.errors import Problem
from bitplan.formats.pairs import parse_pair
from bitplan.plans.layer_plan import LayerPlan
from bitplan.search.plan_settings import OF_RUNTIMES, Palette, RoundablePlan

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo

# (4 + 4) / 12: all layers W4 with A4.
LEAST_COMPRESSION = 8 / 12
Compression = Annotated[float, Field(gt=0, le=1)]


class GeneticPlan(RoundablePlan):
    """A plan found by the genetic search: W4 with A4 or A8 under a compression, or a palette under average bits."""

    method: Literal["genetic"]
    target_compression: Compression | Literal["auto"] = Field(
        0.75,
        description="bound on (4 + mean activation bits) / 12: all A4 0.667, all A8 1; or auto: A8 where sensitivity is high",
    )
    target_avg_bits: float | None = Field(
        None, gt=0, le=16, description="bound on average bits over all parameters instead, with a palette"
    )
    palette: Palette = Field(
        [],
        description="formats, or weights/inputs, to choose from, with target_avg_bits; runtime: those that all runtimes of the models hold exactly",
    )
    metric: Literal["mse", "relative_mse", "weighted_error"] = Field(
        "mse", description="column of the sensitivity table that is minimized"
    )
    solution: Literal["genetic", "exact"] = Field("genetic", description="which of the two solutions the plan holds")
    ga_pop: int = Field(30, ge=3, description="plans in a generation")
    ga_gen: int = Field(25, ge=1, description="generations")
    seed: int = Field(0, ge=0, description="the same seed gives the same plan")

    @model_validator(mode="after")
    def _palette_goes_with_a_target(self) -> "GeneticPlan":
        if bool(self.palette) != (self.target_avg_bits is not None):
            raise ValueError("palette and target_avg_bits go together: give both, or neither for W4 with A4 or A8")
        if not self.palette and self.metric == "weighted_error":
            raise ValueError("metric weighted_error looks at weights only and cannot tell A4 from A8: use mse")
        if (
            not self.palette
            and self.target_compression != "auto"
            and self.target_compression < LEAST_COMPRESSION - 1e-12
        ):
            what = f"target_compression is {self.target_compression:g}, and W4 with A4 everywhere is {LEAST_COMPRESSION:.4f}"
            raise ValueError(f"{what}: choose a value from 0.6667 to 1")
        return self

    def out_of_reach(self, info: "ModelInfo", settings: Any, runtimes: Sequence[str]) -> Iterator[Problem]:
        """Yield a target below the fewest bits in which the palette's formats fit the model's layers."""
        if self.target_avg_bits is None or OF_RUNTIMES in self.palette:
            return
        from bitplan.search.reach import average_bits_reach, below_reach

        if wrong := below_reach(*average_bits_reach(info, self.palette), self.target_avg_bits, "target_avg_bits"):
            yield wrong

    def given_formats(self, settings: Any) -> list[LayerPlan]:
        """Return the candidates of the palette, or W4 as it is measured: every layer gets one."""
        if OF_RUNTIMES in self.palette:
            return []
        w4 = [LayerPlan("int4", group_size=settings.sensitivity.group_size)]
        return [LayerPlan(*astuple(parse_pair(name))) for name in self.palette] or w4
