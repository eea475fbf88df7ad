"""What the settings of all search methods share: names of formats, the check of a plan's average bits, the base of a plan."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bitplan.core.errors import Problem, nearest
from bitplan.core.section import Flag, Section
from bitplan.formats.pairs import parse_pair
from bitplan.formats.table import NAMES
from bitplan.plans.layer_plan import LayerPlan

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo


def _known_format(name: str) -> str:
    """Return a format's name. Raises ValueError that names the nearest ones for another word."""
    if name not in NAMES:
        raise ValueError(f"format {name!r} is not known. {nearest(name, NAMES) or 'docs/formats.md lists them'}")
    return name


FormatName = Annotated[str, AfterValidator(_known_format)]
# A weight format, or weights/inputs: pairs.py.
CandidateName = Annotated[str, AfterValidator(lambda name: parse_pair(name).name)]
# The palette of what the models' runtimes hold. A start puts the formats in its place: config/runtime_palettes.py.
OF_RUNTIMES = "runtime"


def as_palette(value: Any) -> Any:
    """Return a palette as a list: one word stands for one format, or for what runtimes hold."""
    return [value] if isinstance(value, str) else value


def _palette_name(name: str) -> str:
    """Return the name of a candidate, or the word for what runtimes hold."""
    return name if name == OF_RUNTIMES else parse_pair(name).name


def _alone(palette: list[str]) -> list[str]:
    """Return a palette. Raises ValueError where formats stand beside the word for what runtimes hold."""
    if OF_RUNTIMES in palette and len(palette) > 1:
        raise ValueError(f"{OF_RUNTIMES} stands alone: leave out the formats, or name them all")
    return palette


Palette = Annotated[
    list[Annotated[str, AfterValidator(_palette_name)]], BeforeValidator(as_palette), AfterValidator(_alone)
]


# How the weights of a plan are rounded: docs/rounding.md.
Rounding = Literal["nearest", "feedback", "tuned"]


class CheckSettings(Section):
    """What to do if a plan exceeds its target."""

    on_miss: Literal["fail", "warn"] = Field("warn", description="stop the workflow, or only warn")
    tolerance: float = Field(0.0, ge=0, description="bits over the target that still pass")


class PlanSettings(Section):
    """The settings of a plan; a method's model adds `method`, a literal with its name, and its own."""

    check: CheckSettings = Field(CheckSettings(), description="what to do if the plan exceeds its target")

    def lacks(self, settings: Any) -> Iterator[str]:
        """Yield what the rest of the configuration (config.settings.Settings) lacks for this plan, as the end of a sentence about it."""
        yield from ()

    def out_of_reach(self, info: "ModelInfo", settings: Any, runtimes: Sequence[str]) -> Iterator[Problem]:
        """Yield what no search for this plan can reach on a model, by the shapes of its layers; each problem is at a key of the plan.

        `settings` is the whole configuration; `runtimes` are those that the search is told. Needs no torch: it is asked before anything
        is measured.
        """
        yield from ()

    def given_formats(self, settings: Any) -> list[LayerPlan]:
        """Return the formats of which each layer gets one; none where any layer may stay as it is, or runtimes are asked before the choice.

        Weights in a format that does not fit their rows get its substitute.
        """
        return []


class RoundablePlan(PlanSettings):
    """The settings of a plan whose formats leave a choice of codes."""

    # A step between the search and the scores rounds; the search does not.
    rounding: Annotated[Rounding | None, Flag(other_step=True)] = Field(
        None,
        description="how weights are rounded at the same size: docs/rounding.md; as rounding.default says when absent",
    )
