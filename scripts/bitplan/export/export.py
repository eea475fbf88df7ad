"""A plan as a GGUF file: from the model or a converted base file to the file and its report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from bitplan.errors import user_error
from bitplan.export.convert import convert
from bitplan.export.gguf_file import plan_tensors, report, rewrite
from bitplan.files import folder_aside
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo
from bitplan.plan import Plan


@contextmanager
def base_file(given: Path | None, checkpoint: Checkpoint, beside: Path) -> Iterator[Path]:
    """Yield the full-precision GGUF: the given one, or one converted for the time of the block."""
    if given is not None:
        if not given.is_file():
            raise user_error(given, "does not exist", "Make it with scripts/convert_gguf.py")
        yield given
        return
    with folder_aside(beside) as folder:
        convert(checkpoint, folder / "base.gguf")
        yield folder / "base.gguf"


def export_plan(
    base: Path,
    output: Path,
    info: ModelInfo,
    plan: Plan,
    unquantized: str,
    importance: Mapping[str, np.ndarray],
    threads: int,
) -> dict[str, Any]:
    """Write the plan's GGUF and return its report. Raises `UserError` when the base file lacks a layer that the plan changes."""
    records = plan_tensors(GGUFReader(base), info, plan, unquantized)
    held = {layer for record in records for layer in record.layers}
    missing = [layer.name for layer in info.quantizable if plan.of(layer.name).quantized and layer.name not in held]
    if missing:
        raise user_error(
            base,
            f"has no tensor for {missing[0]}",
            "It belongs to another model, or its family has no GGUF name for it",
        )
    rewrite(base, output, records, importance, threads)
    return report(records, output, info)
