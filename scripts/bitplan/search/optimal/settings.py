"""The settings of optimal plans."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bitplan.core.errors import Problem, UserError
from bitplan.core.section import Amount, Flag
from bitplan.runtimes.gguf.recipe_names import Recipe
from bitplan.search.plan_settings import OF_RUNTIMES, Palette, RoundablePlan

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo
    from bitplan.search.allocation.problem import AllocationProblem

FEWEST_WINDOWS = 4  # of text that the search has not seen, to decide on a step


@lru_cache(maxsize=64)
def _problem_of(
    info: "ModelInfo",
    palette: tuple[str, ...],
    embeddings: tuple[str, ...],
    runtimes: tuple[str, ...],
    stored: bool,
    groups: str | None,
) -> "AllocationProblem":
    """Return the problem of a model's shapes: one for all plans that differ in their targets alone, as a start checks each of many."""
    from bitplan.runtimes.registry import runtime_named
    from bitplan.search.optimal.reach import problem_of_shapes

    return problem_of_shapes(info, palette, embeddings, [runtime_named(name) for name in runtimes], stored, groups)


class OptimalPlan(RoundablePlan):
    """The plan of least damage within a size: exact from measured KL, then corrected and refined on fresh text."""

    method: Literal["optimal"]
    target_avg_bits: float | None = Field(
        None, gt=0, le=16, description="bound on average bits over all parameters; or same_size_as, or max_size"
    )
    # The rule passes the baseline's file.
    same_size_as: Annotated[Recipe | None, Flag(by_rule=True)] = Field(
        None, description="baseline whose file size is the bound, e.g. q4_k_m"
    )
    max_size: Amount | None = Field(
        None, description="largest size of the file, or folder, that each of the models' runtimes gets, as 4GB or 500MB"
    )
    palette: Palette = Field(
        ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"],
        min_length=1,
        description="formats, or weights/inputs as mxfp4/mxfp8, to choose from; runtime: those that all runtimes of the models hold exactly",
    )
    sizes: Literal["format", "stored"] | None = Field(
        None,
        description="what a choice takes: the bits of its format, or the most that the model's runtimes store; when absent stored with palette: runtime or max_size",
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
        sizes = (self.target_avg_bits, self.same_size_as, self.max_size)
        if sum(size is not None for size in sizes) != 1:
            raise ValueError("target_avg_bits, same_size_as and max_size: give exactly one")
        if self.max_size is not None and self.sizes == "format":
            raise ValueError("max_size is a limit on what runtimes store: leave out sizes, or set it to stored")
        return self

    @property
    def counts_stored(self) -> bool:
        """Whether a choice takes what the models' runtimes store it in."""
        return self.sizes == "stored" or self.max_size is not None

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
        without = [name for name, model in settings.models.items() if not model.runtimes]
        if self.max_size is not None and without:
            yield f"is to make files of at most {self.max_size}, and model {without[0]} has no runtime: set models.{without[0]}.runtimes, as [gguf]"
        if self.same_size_as not in (None, *settings.baselines):
            yield f"is to have the size of {self.same_size_as}, which is no baseline"

    def out_of_reach(self, info: "ModelInfo", settings: Any, runtimes: Sequence[str]) -> Iterator[Problem]:
        """Yield a target below the fewest bits, or bytes, in which the palette's formats can be chosen for the model's layers, and a palette of which the
        runtimes store nothing."""
        if OF_RUNTIMES in self.palette:
            return
        from bitplan.search.optimal.reach import file_out_of_reach, out_of_reach

        formats = tuple(self.palette), tuple(settings.sensitivity.embeddings or ())
        try:
            problem = _problem_of(info, *formats, tuple(runtimes), self.counts_stored, self.groups)
        except UserError as error:
            yield from error.problems
            return
        wrong = None
        if self.max_size is not None:
            wrong = file_out_of_reach(problem, info, self.max_size)
        elif self.target_avg_bits is not None:
            wrong = out_of_reach(problem, info, self.target_avg_bits)
        if wrong:
            yield wrong
