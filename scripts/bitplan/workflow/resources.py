"""Memory and time of jobs, from the size of a model's weights; both grow with the attempt (docs/scaling.md)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitplan.config.settings import Settings
from bitplan.core.sizes import parse_size
from bitplan.workflow.inputs import model_folder

GIB_MB = 1024


def weights_mb(settings: Settings, wildcards: Any) -> float:
    """Return the size of a checkpoint's weights in MiB; 0 before a model is fetched."""
    files = Path(model_folder(settings, wildcards)).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) / 2**20


def model_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for a walk: imports and logits, and for the largest block a share of the weights, a smaller one of large models."""
    weights = weights_mb(settings, wildcards)
    return int((3 * GIB_MB + min(0.3 * weights, 3 * GIB_MB + 0.08 * weights)) * attempt)


def runtime_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for llama.cpp, which maps a whole file: its pages count as the job's where a cluster measures resident memory."""
    return int((3 * GIB_MB + 1.1 * weights_mb(settings, wildcards)) * attempt)


def sensitivity_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for the sensitivity table, which also holds what the settings allow for candidates."""
    carried = parse_size(settings.sensitivity.memory_limit) // 2**20
    measured = settings.sensitivity.has_kld
    return model_mem_mb(settings, wildcards, attempt) + measured * carried


def search_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for a search, which also keeps quantized weights: one byte each, 4 GiB at most; a task wants the whole model."""
    if getattr(settings.every_plan[wildcards.plan], "task", None):
        return whole_mem_mb(settings, wildcards, attempt) + 4 * GIB_MB
    return model_mem_mb(settings, wildcards, attempt) + int(min(4 * GIB_MB, weights_mb(settings, wildcards)))


def whole_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for lm-eval, which wants the whole model at once, in up to twice its stored size."""
    return int((4 * GIB_MB + 2.2 * weights_mb(settings, wildcards)) * attempt)


def sparsegpt_mem_mb(settings: Settings, wildcards: Any, attempt: int) -> int:
    """Return memory in MiB for SparseGPT: a walk, and the second moments of a block's inputs with their factors."""
    moments = min(40 * GIB_MB, 0.6 * weights_mb(settings, wildcards))
    return model_mem_mb(settings, wildcards, attempt) + int(moments * attempt)


def time_limit(settings: Settings, hours: float, minutes_per_gb: float) -> Callable[[Any, int], int]:
    """Return a function that gives a job's time limit in minutes: some hours, and more for each GB of weights; grows when retried."""

    def limit(wildcards: Any, attempt: int) -> int:
        return int((60 * hours + minutes_per_gb * weights_mb(settings, wildcards) / 1000) * attempt)

    return limit
