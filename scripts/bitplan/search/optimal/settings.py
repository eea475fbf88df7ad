"""The settings of optimal plans."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bitplan.core.section import Flag
from bitplan.runtimes.gguf.recipe_names import Recipe
from bitplan.search.plan_settings import Palette, RoundablePlan

FEWEST_WINDOWS = 4  # of text that the search has not seen, to decide on a step


class OptimalPlan(RoundablePlan):
    """The plan of least damage within a size: exact from measured KL, then corrected and refined on fresh text."""

    method: Literal["optimal"]
    target_avg_bits: float | None = Field(
        None, gt=0, le=16, description="bound on average bits over all parameters; or same_size_as"
    )
    # The rule passes the baseline's file.
    same_size_as: Annotated[Recipe | None, Flag(by_rule=True)] = Field(
        None, description="baseline whose file size is the bound, e.g. q4_k_m"
    )
    palette: Palette = Field(
        ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"],
        min_length=1,
        description="formats, or weights/inputs as mxfp4/mxfp8, to choose from; runtime: those that all runtimes of the models hold exactly",
    )
    sizes: Literal["format", "stored"] | None = Field(
        None,
        description="what a choice takes: the bits of its format, or the most that the model's runtimes store; when absent stored with palette: runtime",
    )
    groups: Literal["experts", "fusion", "none"] | None = Field(
        None, description="layers that share a format; when absent experts for GGUF types, fusion groups for others"
    )
    correct: bool = Field(
        True,
        description="measure steps around the solution in place, and solve again, if validation could show the gain",
    )
    swaps: int = Field(24, ge=1, description="steps that the correction measures")
    refine: bool = Field(False, description="evolutionary refinement at fixed size, by random swaps")
    seed: int = Field(0, ge=0, description="seed of the refinement")

    @model_validator(mode="after")
    def _has_one_size(self) -> "OptimalPlan":
        if (self.target_avg_bits is None) == (self.same_size_as is None):
            raise ValueError("target_avg_bits and same_size_as: give exactly one")
        return self

    def lacks(self, settings: Any) -> Iterator[str]:
        """Yield what the configuration lacks: measured KL, text to decide on, the baseline whose size is the plan's."""
        if not settings.has_kld:
            yield "is optimal by KL: set sensitivity.metric to auto or gradient, or sensitivity.anchors to 1, 2 or all"
        if settings.sensitivity.random:
            yield "is optimal by KL on the calibration text: set sensitivity.random to false"
        if (self.correct or self.refine) and settings.calibration.sequences is None:
            what = "decides its steps on calibration text that was not measured on"
            yield f"{what}: set calibration.sequences, or correct and refine to false"
        if (self.correct or self.refine) and (settings.validation.sequences or FEWEST_WINDOWS) < FEWEST_WINDOWS:
            what = f"decides its steps on at least {FEWEST_WINDOWS} windows"
            yield f"{what}: set validation.sequences to {FEWEST_WINDOWS} or more, or correct and refine to false"
        if self.same_size_as not in (None, *settings.baselines):
            yield f"is to have the size of {self.same_size_as}, which is no baseline"
