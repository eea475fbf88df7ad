"""The sensitivity table of a model, on a text or on Gaussian inputs."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bitplan.core.resume import NOT_SAVED, PartialResults, WalkProgress, digest_of
from bitplan.demo import DEMO
from bitplan.plans.smoothing import Smoothing
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import load_reference
from bitplan.reference.text import cut_text
from bitplan.sensitivity.local_errors import SensitivitySettings, measure_sensitivity

GAUSSIAN = "random"


def calibration_tokens(model: PreparedModel, calibration: str | Path, length: int, sequences: int | None) -> Tensor:
    """Return the tokens (sequences, length) of a text or a saved one; for "random", where only their number counts, of the bundled text."""
    source = DEMO / "calibration.txt" if calibration == GAUSSIAN else Path(calibration)
    if source.suffix == ".safetensors":
        return load_reference(source, model.checkpoint, model.info.fingerprint).tokens
    model.model.check_length(length)
    return cut_text(model.checkpoint.folder, source, length, sequences, bos=model.model.bos).tokens


def measured(
    model: PreparedModel,
    calibration: str | Path,
    length: int,
    sequences: int | None,
    settings: SensitivitySettings,
    importance: Mapping[str, Tensor] = MappingProxyType({}),
    output: Path | None = None,
) -> tuple[list[dict[str, Any]], Smoothing | None]:
    """Return the table's rows and the smoothing; `calibration` is a text, a saved one, or "random".

    With `output` what is done is kept beside it, and an earlier run of the same that was stopped is gone on with.
    """
    tokens, random = calibration_tokens(model, calibration, length, sequences), calibration == GAUSSIAN
    facts = {**model.facts, "tokens": tokens, "shape": tuple(tokens.shape), "settings": settings, "random": random}

    def made(walk: WalkProgress) -> tuple[list[dict[str, Any]], Smoothing | None]:
        return measure_sensitivity(model.model, model.info, tokens, settings, random, importance, walk)

    if output is None:
        return made(NOT_SAVED)
    with PartialResults.open(
        output, digest_of({**facts, "importance": dict(importance)})
    ).remove_on_user_error() as kept:
        return made(WalkProgress(kept))
