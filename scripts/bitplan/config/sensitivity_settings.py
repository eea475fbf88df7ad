"""The settings of the sensitivity table."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from bitplan.config.plan_settings import CandidateName, FormatName, Section
from bitplan.core.sizes import bytes_of


def _amount(text: str) -> str:
    """Return an amount of memory as it is written. Raises ValueError for what is none."""
    bytes_of(text)
    return text


Amount = Annotated[str, AfterValidator(_amount)]


class SensitivitySettings(Section):
    """How the sensitivity table is measured, from which genetic plans are searched."""

    group_size: int = Field(128, ge=1, description="weights per group of int4")
    activation_scope: Literal["tensor", "token"] = Field(
        "tensor", description="what a scale of A4 and A8 spans: a window, or each token"
    )
    smooth_alpha: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.5], description="SmoothQuant's alpha; of several the best for each group; none: no smoothing"
    )
    palette: list[CandidateName] = Field(
        [],
        description="formats to measure, of weights (q4_k) or weights/inputs (mxfp4/mxfp8): those that genetic plans with average bits and optimal plans may choose from",
    )
    tokens: int = Field(2048, ge=1, description="tokens looked at for each layer")
    random: bool = Field(False, description="Gaussian inputs in the place of the calibration text")
    anchors: Literal[1, 2, "all"] | None = Field(
        None,
        description="measure KL of each layer alone in 1 or 2 formats of the palette, or in all; absent: not at all",
    )
    metric: Literal["auto", "measured", "gradient"] = Field(
        "auto",
        description="where KL of a layer in a format comes from: measured as anchors says, or, gradient, from a few backward passes for all that anchors do not measure; auto: gradient if an optimal plan or embeddings need KL and there are no anchors",
    )
    draws: int = Field(16, ge=1, description="draws of labels for each window, with metric gradient")
    embeddings: list[FormatName] = Field(
        [],
        description="formats in which KL of the token embedding and of the output matrix is found",
    )
    memory_limit: Amount = Field(
        "4GB", description="memory for the hidden states carried to measure KL, as 4GB or 512MB"
    )
    shards: int = Field(1, ge=1, description="jobs that share the layers; the table is the same for any number")
    fisher: bool = Field(False, description="also the Fisher score, from one backward pass: a cheaper estimate of KL")

    @field_validator("anchors", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("is a number of formats, or all: give 1, 2, all or null")
        return int(value) if value in ("1", "2") else value

    @model_validator(mode="after")
    def _is_measured_on_text(self) -> "SensitivitySettings":
        on_text = self.anchors is not None or self.metric == "gradient" or self.embeddings
        if self.random and (on_text or self.fisher or self.shards > 1):
            what = "random goes without anchors, metric gradient, embeddings, fisher and shards"
            raise ValueError(f"{what}: these measure on the calibration text")
        if self.embeddings and self.anchors is None and self.metric == "measured":
            raise ValueError("embeddings goes with anchors or metric gradient: its formats have KL alone")
        if self.anchors in (1, 2) and not self.palette:
            raise ValueError("anchors 1 and 2 are formats of the palette: give it some, or anchors all")
        return self
