"""Makes an estimate: opens the model, times it, counts the steps of the settings, prices them."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.config.settings import Settings
from bitplan.formats.pairs import parse_pair
from bitplan.models.layers import ModelInfo
from bitplan.workflow.estimate.rates import Rates
from bitplan.workflow.estimate.rows import line_of, rows_of, table_of, total_of
from bitplan.workflow.estimate.steps import Case, formats_of, steps_of

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


def timed_formats(settings: Settings) -> list[str]:
    """Return the weight formats whose quantizers the steps of the settings run."""
    plans = [name for plan in settings.plans.values() for name in formats_of(plan)]
    table = [parse_pair(name).wq for name in settings.sensitivity.palette]
    recipes = [f"{name.split('_')[0]}_k" for name in settings.baselines if "_k" in name]
    return sorted({*plans, *table, *recipes, "int4"})


def estimate(name: str, info: ModelInfo, settings: Settings, rates: Rates, counted: Mapping[str, Any], cores: int) -> Estimate:
    """Return the estimate of a model's steps; `counted` has hidden and vocabulary sizes, bytes of a value, tokens of the texts."""
    case = Case(name, info, settings, **counted)
    rows = rows_of(steps_of(case), rates)
    return Estimate(name, rows, total_of(rows, cores, settings.compute.threads), rates, counted)


def _resident() -> int:
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss


def measured(path: Path, name: str, settings: Settings) -> tuple[ModelInfo, Rates, dict[str, Any]]:
    """Return the description of a model, the rates timed on it, and what is counted. Raises `UserError`."""
    started = time.monotonic()
    import torch

    command = time.process_time()
    from bitplan.reference.opening import prepare_model

    compute = settings.compute
    model = prepare_model(path, compute.dtype, compute.device, compute.threads, settings.bos)
    opened, memory = time.process_time(), _resident()
    from bitplan.workflow.estimate.measure import Clock, block_rates, layer_rates, score_rate, text_tokens

    clock = Clock(model.model.device.type == "cuda")
    length = settings.calibration.length
    rounded = any(plan.method == "sparsegpt" or settings.rounding_of(each) != "nearest" for each, plan in settings.plans.items())
    began = time.process_time()
    texts = settings.models[name]
    wanted = {each: getattr(settings, each) for each in TEXTS}
    tokens = {
        each: text_tokens(model, Path(getattr(texts, TEXTS[each])), (section.sequences or 10**9) * section.length)
        for each, section in wanted.items()
    }
    text = (time.process_time() - began) / len(TEXTS)
    rows = model.info.layers[0].shape[0] if model.info.layers[0].token_table else 100
    batch = torch.randint(0, min(rows, 1000), (max(1, 2048 // length), length), generator=torch.Generator().manual_seed(0))
    seconds = {
        "command": command,
        "open": opened,
        "text": text,
        **block_rates(model, batch, clock),
        "score": score_rate(model, batch, clock),
        **layer_rates(model, timed_formats(settings), settings.imatrix, rounded, clock),
    }
    config = model.model.module.config
    counted = {
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "stored": max(1, round(sum(t.nbytes for t in model.checkpoint.tensors.values()) / max(1, model.info.parameters))),
        "tokens": tokens,
    }
    rates = Rates(model.info.fingerprint, seconds, memory, time.monotonic() - started, compute.threads)
    return model.info, rates, counted
