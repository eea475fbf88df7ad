"""The sensitivity table of a model, on a text or on Gaussian inputs."""

from pathlib import Path
from typing import Any

from bitplan.demo import DEMO
from bitplan.evaluate.teacher import load_teacher
from bitplan.evaluate.text import windows
from bitplan.models.smoothing import Smoothing
from bitplan.opening import Opened
from bitplan.statistics.sensitivity import SensitivitySettings, measure_sensitivity

GAUSSIAN = "random"


def measured(
    model: Opened, calibration: str | None, length: int, sequences: int | None, settings: SensitivitySettings
) -> tuple[list[dict[str, Any]], Smoothing | None]:
    """Return the table's rows and the smoothing; `calibration` is a text, a saved one, "random", or None for the bundled text."""
    random = calibration == GAUSSIAN
    source = Path(calibration) if calibration and not random else DEMO / "calibration.txt"
    if source.suffix == ".safetensors":
        tokens = load_teacher(source, model.checkpoint, model.info.fingerprint).tokens
    else:
        tokens = windows(model.checkpoint.folder, source, length, sequences)
    return measure_sensitivity(model.model, model.info, tokens, settings, random)
