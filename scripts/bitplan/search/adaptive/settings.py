"""The settings of adaptive plans."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from bitplan.core.errors import Problem
from bitplan.core.section import PathName
from bitplan.plans.layer_plan import LayerPlan
from bitplan.search.plan_settings import FormatName, RoundablePlan

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo


class AdaptivePlan(RoundablePlan):
    """A plan found by the adaptive Alpha-Hill threshold search."""

    method: Literal["adaptive"] = "adaptive"
    ppl_threshold: float = Field(0.1, gt=0, description="largest rise of perplexity, as a share")
    target_avg_bits: float = Field(
        8.0,
        gt=0,
        le=16,
        description="average bits over all parameters that the plan is to be within; the check compares",
    )
    step_size: float = Field(0.5, gt=0, description="step of the alpha threshold")
    batch_size: int = Field(8, ge=1, description="windows in one batch; changes speed only")
    search: Literal["linear", "bisect"] = Field("linear", description="try every step, or halve")
    fit: Literal["hill", "xmin_mid"] = Field("hill", description="how alpha is fitted")
    polarity: Literal["high_alpha_fewer_bits", "low_alpha_fewer_bits"] = Field(
        "high_alpha_fewer_bits", description="which end of alpha is compressed first"
    )
    group_size: int = Field(32, ge=1, description="values per block")
    formats: list[FormatName] = Field(
        ["mxfp4", "mxfp8"], min_length=1, description="a format for each stage, fewest bits first: docs/formats.md"
    )
    task: str | None = Field(None, description="limit a metric of this lm-eval task instead of perplexity per token")
    metric: str | None = Field(None, description="which metric of the task; its usual one when absent")
    task_limit: int | None = Field(None, ge=1, description="documents of the task; all when absent")
    include_path: PathName | None = Field(None, description="folder with your own lm-eval tasks")

    def out_of_reach(self, info: "ModelInfo", settings: Any, runtimes: Sequence[str]) -> Iterator[Problem]:
        """Yield a target that the check would refuse even with every layer in the smallest of the formats."""
        if self.check.on_miss != "fail":
            return
        from bitplan.search.reach import average_bits_reach, below_reach

        low, high = average_bits_reach(info, self.formats, self.group_size)
        wrong = below_reach(low, high, self.target_avg_bits, "target_avg_bits")
        if wrong and self.target_avg_bits + self.check.tolerance < low - 1e-9:
            yield wrong

    def given_formats(self, settings: Any) -> list[LayerPlan]:
        """Return the formats of the stages: a search that finds room for none of them has no result worth exporting."""
        return [LayerPlan(name, group_size=self.group_size) for name in self.formats]
