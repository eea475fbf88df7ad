"""Makes an estimate: opens the model, times it, counts the steps of the settings, prices them."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.config.settings import ModelSettings, Settings, WindowSettings
from bitplan.core.files import read_json
from bitplan.models.layers import ModelInfo, model_info
from bitplan.workflow.estimate.case import Case
from bitplan.workflow.estimate.plan_steps import rounds, timed_formats
from bitplan.workflow.estimate.rates import Rates, has_units, rates_of
from bitplan.workflow.estimate.rows import line_of, rows_of, table_of, total_of
from bitplan.workflow.estimate.steps import steps_of

# Tokens of the batch that is timed, of the first so many of the vocabulary.
TOKENS, KNOWN = 2048, 100
TEXTS = {"calibration": "calibration", "validation": "calibration", "evaluation": "evaluation"}


@dataclass(frozen=True)
class Estimate:
    """Rows for each rule, the run's total, the rates behind them, and what of the model and its texts was counted."""

    name: str
    rows: list[dict[str, Any]]
    total: dict[str, Any]
    rates: Rates
    counted: Mapping[str, Any]

    @property
    def line(self) -> str:
        """The estimate in one line."""
        return line_of(self.name, self.total)

    @property
    def text(self) -> str:
        """The estimate as a table and a line."""
        return f"{table_of(self.rows)}\n\n{self.line}\n"

    def to_json(self) -> dict[str, Any]:
        """Return the content of an estimate.json."""
        found = {"name": self.name, "steps": self.rows, "total": self.total, "counted": dict(self.counted)}
        return {**found, "rates": self.rates.to_json()}


def estimate(
    name: str, info: ModelInfo, settings: Settings, rates: Rates, counted: Mapping[str, Any], cores: int
) -> Estimate:
    """Return the estimate of a model's steps; `counted` has hidden and vocabulary sizes, bytes of a value, tokens of the texts."""
    case = Case(name, info, settings, **counted)
    rows = rows_of(steps_of(case), rates)
    return Estimate(name, rows, total_of(rows, cores, settings.compute.threads), rates, counted)


def _resident() -> int:
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss


def _text_tokens(model: Any, texts: ModelSettings, settings: Settings) -> dict[str, int]:
    """Return {text: tokens} of a model's texts, as far as the settings use them."""
    from bitplan.workflow.estimate.measure import text_tokens

    found = {}
    for name, source in TEXTS.items():
        section: WindowSettings = getattr(settings, name)
        wanted = 10**9 if section.sequences is None else section.sequences * section.length
        found[name] = text_tokens(model, Path(getattr(texts, source)), wanted)
    return found


def _sizes(model: Any) -> dict[str, int]:
    """Return what of a model is counted: hidden size, vocabulary, bytes of a stored value."""
    config, bytes_in_all = model.model.module.config, sum(each.nbytes for each in model.checkpoint.tensors.values())
    stored = max(1, round(bytes_in_all / max(1, model.info.parameters)))
    return {"hidden": config.hidden_size, "vocabulary": config.vocab_size, "stored": stored}


def measured(path: Path, name: str, settings: Settings) -> tuple[ModelInfo, Rates, dict[str, Any]]:
    """Return the description of a model, the rates timed on it, and what is counted. Raises `UserError`."""
    started, python = time.monotonic(), time.process_time()
    import torch

    loaded, held = time.process_time(), _resident()
    from bitplan.reference.opening import prepare_model

    compute, length = settings.compute, settings.calibration.length
    model = prepare_model(path, compute.dtype, compute.device, compute.threads, settings.bos)
    on_gpu = model.model.device.type == "cuda"
    opened, memory = time.process_time(), _resident()
    from bitplan.workflow.estimate.measure import Clock, block_rates, candidates, layer_rates, score_rates

    clock = Clock(on_gpu)
    tokens = _text_tokens(model, settings.models[name], settings)
    text = (time.process_time() - opened) / len(TEXTS)
    sizes = _sizes(model)
    shape = (max(1, TOKENS // length), length)
    batch = torch.randint(0, min(sizes["vocabulary"], KNOWN), shape, generator=torch.Generator().manual_seed(0))
    rounded = any(rounds(settings, plan) for plan in settings.plans)
    seconds = {
        **{"python": python, "torch": loaded - python, "model": opened - loaded, "text": text},
        **block_rates(model, batch, candidates(settings.sensitivity), clock),
        **score_rates(model, batch, clock),
        **layer_rates(model, timed_formats(settings), settings.imatrix, rounded, clock),
    }
    rates = Rates(model.info.fingerprint, seconds, memory, time.monotonic() - started, compute.threads, held)
    return model.info, rates, {**sizes, "tokens": tokens}


def estimated(path: Path, name: str, settings: Settings, cores: int) -> Estimate:
    """Return the estimate of a model's steps after timing it here. Raises `UserError`."""
    info, rates, counted = measured(path, name, settings)
    return estimate(name, info, settings, rates, counted, cores)


def estimated_before(folder: Path, name: str, settings: Settings, cores: int) -> Estimate | None:
    """Return the estimate of other settings by the rates in a folder of results; None where the model was not timed there in the same units."""
    if not ((folder / "estimate.json").is_file() and (folder / "model.json").is_file()):
        return None
    info, content = model_info(folder / "model.json"), read_json(folder / "estimate.json")
    # An estimate is made once for a model: one of an earlier version stays.
    if not has_units(content):
        return None
    rates = rates_of(content, folder / "estimate.json")
    known = rates.fingerprint == info.fingerprint
    return estimate(name, info, settings, rates, content["counted"], cores) if known else None
