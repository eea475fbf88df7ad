"""The settings of plans: what each search method may be told, its type, range and meaning."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from bitplan.core.errors import nearest
from bitplan.formats.facts import NAMES
from bitplan.formats.pairs import parse_pair
from bitplan.search.sparsegpt.score_weights import WEIGHTS

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]


def _known_format(name: str) -> str:
    """Return a format's name. Raises ValueError that names the nearest ones for another word."""
    if name not in NAMES:
        raise ValueError(f"format {name!r} is not known. {nearest(name, NAMES) or 'docs/formats.md lists them'}")
    return name


def _path(path: str) -> str:
    """Return a path with `~` expanded. Raises ValueError for one with braces, which Snakemake takes for a wildcard."""
    if "{" in path or "}" in path:
        raise ValueError(
            "has braces, which Snakemake takes for a wildcard: rename the file, or give a link to it without them"
        )
    return os.path.expanduser(path)


PathName = Annotated[str, AfterValidator(_path)]
FormatName = Annotated[str, AfterValidator(_known_format)]
# A weight format, or weights/inputs: pairs.py.
CandidateName = Annotated[str, AfterValidator(lambda name: parse_pair(name).name)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, numbers may come as strings (--config gives them so)."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=False, allow_inf_nan=False)


class CheckSettings(Section):
    """What a plan over its target does."""

    on_miss: Literal["fail", "warn"] = Field("warn", description="stop the workflow, or only say so")
    tolerance: float = Field(0.0, ge=0, description="bits over the target that still pass")


class AdaptivePlan(Section):
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
    check: CheckSettings = Field(CheckSettings(), description="what a missed target does")


class RandomPlan(Section):
    """A plan drawn by lot."""

    method: Literal["random"]
    mxfp4_ratio: float = Field(0.3, ge=0, le=1, description="share of layers in mxfp4")
    bf16_ratio: float = Field(0.2, ge=0, le=1, description="share of layers in bf16")
    seed: int = Field(42, ge=0, description="the same seed gives the same plan")
    group_size: int = Field(32, ge=1, description="values per block")
    check: CheckSettings = Field(CheckSettings(), description="what a missed target does")

    @field_validator("bf16_ratio")
    @classmethod
    def _fits(cls, value: float, info: Any) -> float:
        if value + info.data.get("mxfp4_ratio", 0) > 1 + 1e-12:
            raise ValueError("mxfp4_ratio and bf16_ratio add up to more than 1")
        return value


Compression = Annotated[float, Field(gt=0, le=1)]


class GeneticPlan(Section):
    """A plan found by the genetic search: W4 with A4 or A8 under a compression, or a palette under average bits."""

    method: Literal["genetic"]
    target_compression: Compression | Literal["auto"] = Field(
        0.75,
        description="bound on (4 + mean activation bits) / 12: all A4 0.667, all A8 1; or auto: A8 where sensitivity is high",
    )
    target_avg_bits: float | None = Field(
        None, gt=0, le=16, description="bound on average bits over all parameters instead, with a palette"
    )
    palette: list[CandidateName] = Field(
        [], description="formats, or weights/inputs, to choose from, with target_avg_bits"
    )
    metric: Literal["mse", "relative_mse", "weighted_error"] = Field(
        "mse", description="column of the sensitivity table that is minimized"
    )
    solution: Literal["genetic", "exact"] = Field("genetic", description="which of the two solutions the plan holds")
    ga_pop: int = Field(30, ge=3, description="plans in a generation")
    ga_gen: int = Field(25, ge=1, description="generations")
    seed: int = Field(0, ge=0, description="the same seed gives the same plan")
    check: CheckSettings = Field(CheckSettings(), description="what a missed target does")

    @model_validator(mode="after")
    def _palette_goes_with_a_target(self) -> "GeneticPlan":
        if bool(self.palette) != (self.target_avg_bits is not None):
            raise ValueError("palette and target_avg_bits go together: give both, or neither for W4 with A4 or A8")
        if not self.palette and self.metric == "weighted_error":
            raise ValueError("metric weighted_error looks at weights only and cannot tell A4 from A8: use mse")
        return self


Width = Annotated[int, Field(ge=2, le=8)]
Share = Annotated[float, Field(ge=0, le=1)]
MeanWidth = Annotated[float, Field(gt=0, le=16)]


class SparseGPTPlan(Section):
    """A plan whose weights are pruned and quantized by SparseGPT, with a width for every input channel."""

    method: Literal["sparsegpt"]
    sparsity: float = Field(0.0, ge=0, lt=1, description="share of the weights that become 0")
    prunen: int = Field(0, ge=0, description="prune this many of every prunem neighbours in a row instead")
    prunem: int = Field(0, ge=0, description="neighbours in a row, as 4 in 2 of 4")
    target_avg_bits: list[MeanWidth] = Field(
        [4.0],
        description="mean width of a layer's channels, without scales; several: for equal parts of the blocks; 16: prune only; none: plain quantiles",
    )
    layer_bits: dict[str, MeanWidth] = Field(
        {}, description="mean widths of the layers that a pattern matches; the last match wins"
    )
    bit_allocation_method: Literal["quantile", "budget", "optimal", "uniform"] = Field(
        "quantile", description="how widths are given to channels"
    )
    bit_options: list[Width] = Field([2, 3, 4, 6, 8], min_length=1, description="widths to choose from, rising")
    quantiles: list[Share] | None = Field(
        None, description="shares of the channels up to each width but the last; even when absent"
    )
    weights: dict[Literal[tuple(WEIGHTS)], Annotated[float, Field(ge=0)]] = Field(
        dict(WEIGHTS),
        min_length=1,
        description="weights of the five scores of a channel; one that is not named counts nothing",
    )
    sym: bool = Field(True, description="symmetric codes, or a zero point")
    mse: bool = Field(True, description="cut the range of a row where that lowers its error")
    group_size: int | None = Field(
        None, ge=1, description="inputs of a row that share a scale; the whole row when absent"
    )
    blocksize: int = Field(128, ge=1, description="columns between two updates of the rest; a multiple of prunem")
    percdamp: float = Field(0.01, ge=0, description="damping of the Hessian, in shares of its mean diagonal")
    compensate: bool = Field(
        True, description="let later columns make up for earlier ones; without: magnitude pruning, rounding to nearest"
    )
    check: CheckSettings = Field(CheckSettings(), description="what a missed target does")

    @field_validator("target_avg_bits", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _fits_together(self) -> "SparseGPTPlan":
        if self.bit_options != sorted(set(self.bit_options)):
            raise ValueError("bit_options do not rise")
        if (self.prunen or self.prunem) and not 0 < self.prunen < self.prunem:
            raise ValueError(f"prunen and prunem: {self.prunen} of {self.prunem} is no pattern")
        return self


class OptimalPlan(Section):
    """The plan of least damage within a size: exact from measured KL, then corrected and refined on fresh text."""

    method: Literal["optimal"]
    target_avg_bits: float | None = Field(
        None, gt=0, le=16, description="bound on average bits over all parameters; or same_size_as"
    )
    same_size_as: str | None = Field(None, description="baseline whose file size is the bound, e.g. q4_k_m")
    palette: list[CandidateName] = Field(
        ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"],
        min_length=1,
        description="formats, or weights/inputs as mxfp4/mxfp8, to choose from; sensitivity.palette has to measure them",
    )
    groups: Literal["experts", "fusion", "none"] | None = Field(
        None, description="layers that share a format; when absent experts for GGUF types, fusion groups for others"
    )
    correct: bool = Field(True, description="measure steps around the solution in place, and solve again")
    swaps: int = Field(24, ge=1, description="steps that the correction measures")
    refine: bool = Field(False, description="evolutionary refinement at fixed size, by random swaps")
    seed: int = Field(0, ge=0, description="seed of the refinement")
    check: CheckSettings = Field(CheckSettings(), description="what a missed target does")

    @model_validator(mode="after")
    def _has_one_size(self) -> "OptimalPlan":
        if (self.target_avg_bits is None) == (self.same_size_as is None):
            raise ValueError("target_avg_bits and same_size_as: give exactly one")
        return self


METHODS: Mapping[str, type[Section]] = {
    "adaptive": AdaptivePlan,
    "random": RandomPlan,
    "genetic": GeneticPlan,
    "sparsegpt": SparseGPTPlan,
    "optimal": OptimalPlan,
}
AnyPlan = Annotated[
    AdaptivePlan | RandomPlan | GeneticPlan | SparseGPTPlan | OptimalPlan, Field(discriminator="method")
]
