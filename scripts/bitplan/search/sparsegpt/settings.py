"""The settings of SparseGPT plans."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bitplan.search.plan_settings import PlanSettings
from bitplan.search.sparsegpt.score_weights import WEIGHTS

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
        return self
