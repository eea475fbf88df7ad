"""The settings of SparseGPT plans."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bitplan.core.errors import Problem
from bitplan.plans.layer_plan import LayerPlan
from bitplan.search.plan_settings import PlanSettings
from bitplan.search.sparsegpt.score_weights import WEIGHTS

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo

Width = Annotated[int, Field(ge=2, le=8)]
Share = Annotated[float, Field(ge=0, le=1)]
MeanWidth = Annotated[float, Field(gt=0, le=16)]


class SparseGPTPlan(PlanSettings):
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
        if self.prunen and self.blocksize % self.prunem:
            raise ValueError(f"blocksize {self.blocksize} is not a multiple of prunem {self.prunem}")
        if self.quantiles is not None and (
            len(self.quantiles) != len(self.bit_options) - 1 or self.quantiles != sorted(self.quantiles)
        ):
            raise ValueError(f"quantiles: give {len(self.bit_options) - 1} rising numbers, one less than bit_options")
        if not any(self.weights.values()):
            raise ValueError("weights: no score counts; give one of them a weight over 0, as activation: 1")
        return self

    @model_validator(mode="after")
    def _widths_are_in_reach(self) -> "SparseGPTPlan":
        # Patterns may give every layer a width of its own: only the search knows which of the others are used then.
        if self.target_avg_bits == [16.0] or self.layer_bits:
            return self
        if not self.target_avg_bits and self.bit_allocation_method != "quantile":
            raise ValueError(f"target_avg_bits is required by {self.bit_allocation_method}: set it, or use quantile")
        uniform, (low, high) = self.bit_allocation_method == "uniform", (self.bit_options[0], self.bit_options[-1])
        for target in self.target_avg_bits:
            if uniform and target not in range(2, 9):
                raise ValueError(
                    f"target_avg_bits: {target:g} is not a width that all channels can have: choose one of 2 to 8"
                )
            if not uniform and not low <= target <= high:
                raise ValueError(f"target_avg_bits: {target:g} is out of reach of bit_options, {low} to {high}")
        return self

    def out_of_reach(self, info: "ModelInfo", settings: Any, runtimes: Sequence[str]) -> Iterator[Problem]:
        """Yield patterns that match no layer of the model, and more parts than it has blocks."""
        from bitplan.models.layer_patterns import match_layers, nearest_layers

        names = [layer.name for layer in info.quantizable]
        for pattern in self.layer_bits:
            if not match_layers(pattern, names):
                hint = nearest_layers(pattern, names)
                yield Problem("SPARSEGPT-NO-MATCH", f"layer_bits: {pattern}", "matches no layer", hint)
        blocks = 1 + max(layer.block for layer in info.quantizable)
        if len(self.target_avg_bits) > blocks:
            what = f"has {len(self.target_avg_bits)} parts, and the model {blocks} blocks"
            yield Problem("SPARSEGPT-TARGET", "target_avg_bits", what, "Give at most one per block")

    def given_formats(self, settings: Any) -> list[LayerPlan]:
        """Return the format of codes with a width per channel, unless weights are pruned only."""
        return [] if self.target_avg_bits == [16.0] and not self.layer_bits else [LayerPlan("per_channel")]
