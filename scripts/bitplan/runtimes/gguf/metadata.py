"""What a plan's GGUF file says of itself: name, plan, average bits, KL, calibration text and version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitplan import __version__
from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import Plan, average_bits
from bitplan.runtimes.gguf.base_check import PLAN_KEY
from bitplan.runtimes.runtime import ExportJob


def job_keys(job: ExportJob) -> dict[str, str | float]:
    """Return {key: value} for the file of an export; its notes say names, scores and calibration text."""
    notes = job.notes
    names = (notes.get("model_name", ""), notes.get("plan_name", ""))
    return plan_keys(job.plan, job.info, *names, measured_kl(notes.get("scores")), notes.get("calibration"))


def expected_kl(summary: Mapping[str, Any]) -> float | None:
    """Return the KL that a search expects of its plan, nats per token; None where it did not measure any.

    After a step that was measured in place it is that measurement, before it the sum of the layers' KL.
    """
    kept = [stage for stage in summary.get("stages") or () if stage.get("kept")]
    if kept:
        return float(kept[-1]["kl_before"] + kept[-1]["kl_change"])
    held = summary.get("kld_predicted")
    return None if held is None else float(held)


def measured_kl(scores: Path | None) -> float | None:
    """Return the KL in a perplexity.json; None without a file. Raises `UserError` for one without."""
    if scores is None:
        return None
    held = read_json(scores).get("kl_mean")
    if isinstance(held, bool) or not isinstance(held, (int, float)):
        raise user_error("REPORT-NO-FIGURE", scores, "has no kl_mean", "Create it with scripts/perplexity.py --plan")
    return float(held)


def plan_keys(
    plan: Plan, info: ModelInfo, model: str, name: str, kl: float | None = None, calibration: Path | None = None
) -> dict[str, str | float]:
    """Return {key: value} for the file of the plan `name` of the model `model`; what is not known has no key.

    `kl` was measured; without it the file has what the search expects. `calibration` is the text, of which the file has the SHA-256.
    """
    expected = expected_kl(plan.summary) if kl is None else kl
    keys: dict[str, str | float] = {"general.name": f"{model} {name}", PLAN_KEY: name, "bitplan.version": __version__}
    keys["bitplan.avg_bits"] = average_bits(plan, info).avg_bits
    if expected is not None:
        keys["bitplan.kl"] = expected
    if calibration is not None:
        keys["bitplan.calibration_sha256"] = hashlib.sha256(Path(calibration).read_bytes()).hexdigest()
    return keys
