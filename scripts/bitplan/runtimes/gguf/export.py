"""A plan as a GGUF file: from the model or a converted base file to the file and its report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGUFReader

from bitplan.core.errors import user_error
from bitplan.core.files import temporary_folder
from bitplan.formats.table import PER_CHANNEL
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.file import TensorRecord, is_part, layer_names, plan_tensors, read_gguf, report, rewrite
from bitplan.runtimes.gguf.folding import column_factors
from bitplan.runtimes.gguf.rounded_tensors import exact_layers, rounded_report, tensor_codes, with_unused
from bitplan.runtimes.gguf.tensor_types import nearest_types, smallest_types
from bitplan.runtimes.transformers.checkpoint import write_checkpoint

# 30 dB: about what 5 bits lose of Gaussian weights.
MOST_ERROR = 1e-3


@contextmanager
def base_file(
    given: Path | None,
    checkpoint: Checkpoint,
    beside: Path,
    info: ModelInfo | None = None,
    plan: Plan | None = None,
    checker: Callable[[], Callable[[Path, Path], None]] | None = None,
) -> Iterator[Path]:
    """Yield the full-precision GGUF: the given one, or one converted for the time of the block, which `checker`() may refuse.

    Of a plan with compressed layers it is the compressed model's, whatever is given: the values are no roundings of the original's.
    """
    compressed = plan is not None and plan.compressed is not None
    if given is not None and not compressed:
        yield given
        return
    with temporary_folder(beside) as folder:
        source = _with_compressed(checkpoint, info, plan, folder / "checkpoint") if compressed else checkpoint
        check = checker() if checker is not None and not compressed else None
        convert(source, folder / "base.gguf", name=checkpoint.folder.resolve().name, check=check)
        yield folder / "base.gguf"


def _with_compressed(checkpoint: Checkpoint, info: ModelInfo, plan: Plan, folder: Path) -> Checkpoint:
    """Return a checkpoint in `folder` that holds the plan's compressed layers, and everything else as it was."""
    only = {name: made for name, made in plan.layers.items() if made.wq == PER_CHANNEL}
    made = Plan(only, compressed=plan.compressed)
    write_checkpoint(folder, checkpoint, info, made, QuantizedWeights(limit=0))
    return Checkpoint.open(folder)


def check_shapes(reader: GGUFReader, base: Path, info: ModelInfo) -> None:
    """Raise `UserError` where a tensor has not the shape of the layer, or of the experts, that its name says it holds."""
    layers, names = {layer.name: layer for layer in info.layers}, layer_names(reader, info)
    for tensor in reader.tensors:
        if is_part(tensor.name):
            continue
        held = [layers[name].shape for name in names.get(tensor.name, ())]
        wanted = (*held[0][::-1], *((len(held),) if len(held) > 1 else ())) if held else ()
        if wanted and tuple(int(n) for n in tensor.shape) != wanted:
            what = f"tensor {tensor.name} is {' x '.join(map(str, tensor.shape))}, the model's {' x '.join(map(str, wanted))}"
            raise user_error(base, what, "It belongs to another model: make it with scripts/convert_gguf.py")


def export_plan(
    base: Path,
    output: Path,
    info: ModelInfo,
    plan: Plan,
    unquantized: str,
    importance: Mapping[str, np.ndarray],
    threads: int,
    match: str = "bits",
    max_error: float = MOST_ERROR,
    keys: Mapping[str, str | float] = MappingProxyType({}),
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Write the plan's GGUF and return its report.

    Formats that no GGUF type holds get the type of the table with `match` "bits", and with "distortion" the one whose error on
    the layer is nearest. Layers with a width per channel get the smallest type whose squared error is at most `max_error` of the
    values' squares; `base` holds them compressed (`base_file`). The file has `keys` besides those of `base`. Layers of a rounded plan have its very
    codes where a type holds them; their rows are found by the values of the `checkpoint`, by default the one of `info`. Raises `UserError`
    when it lacks a layer that the plan changes.
    """
    reader = read_gguf(base)
    check_shapes(reader, base, info)
    factors = column_factors(reader, info, plan.smoothing)
    types = nearest_types(reader, info, plan, factors) if match == "distortion" else {}
    types |= smallest_types(reader, info, plan, max_error) if plan.compressed else {}
    exact = exact_layers(info, plan)
    types = {name: kind for name, kind in types.items() if name not in exact}
    records = plan_tensors(reader, info, plan, unquantized, types=types, exact=exact)
    held = {layer for record in records for layer in record.layers}
    changed = [layer for layer in info.quantizable if plan.of(layer.name).quantized]
    changed += [layer for layer in plan.embeddings(info) if not layer.tied]
    missing = [layer.name for layer in changed if layer.name not in held]
    if missing:
        raise user_error(
            base,
            f"has no tensor for {missing[0]}",
            "It belongs to another model, or its family has no GGUF name for it",
        )
    codes = tensor_codes(records, plan, exact, checkpoint or Checkpoint.open(Path(info.path)), info) if exact else {}
    records = with_unused(records, plan, codes)
    rewrite(base, output, records, importance, threads, factors=factors, keys=keys, codes=codes)
    beside = {
        "smoothing": _smoothing_report(plan),
        "rounded": rounded_report(records, plan, codes),
        "channels": _channels_report(records, plan, info, max_error),
    }
    return {**report(records, output, info), **beside}


def _channels_report(
    records: Sequence[TensorRecord], plan: Plan, info: ModelInfo, max_error: float
) -> dict[str, Any] | None:
    """Return what the file needs for layers with a width per channel, and what the plan would need."""
    some = [record for record in records if any(plan.of(layer).wq == PER_CHANNEL for layer in record.layers)]
    if not some:
        return None
    stored = sum(plan.of(layer).stored_bits or 0 for record in some for layer in record.layers) / 8
    written = sum(record.bytes for record in some)
    extra = 8 * (written - stored) / info.parameters
    return {
        "tensors": len(some),
        "max_error": max_error,
        "plan_bytes": stored,
        "file_bytes": written,
        "extra_avg_bits": extra,
    }


def _smoothing_report(plan: Plan) -> dict[str, Any] | None:
    """Return what of a plan's smoothing the file holds: groups folded into norms, layers whose input would have to be divided."""
    if plan.smoothing is None:
        return None
    folded, rest = plan.smoothing.folded.groups, [g for g in plan.smoothing.groups if not g.norm]
    why = "a GGUF holds no division of a layer's input; its weights are stored unsmoothed"
    unstored = sorted(layer for group in rest for layer in group.layers)
    return {"alphas": plan.smoothing.alphas, "folded": len(folded), "not_stored": unstored, "why": why if rest else ""}


def print_report(output: Path, report: Mapping[str, Any]) -> None:
    """Print size and types of an exported file, and what it cannot hold of its plan."""
    print(f"{output}: {report['file_bytes']:,} bytes, {report['avg_bits_file']:.3f} bits per parameter")
    print(", ".join(f"{number} x {kind}" for kind, number in sorted(report["types"].items())))
    agreed, smoothing = report["experts_made_to_agree"], report["smoothing"]
    if agreed["tensors"]:
        cost = f"{agreed['extra_bytes']:,} bytes, {agreed['extra_avg_bits']:.3f} bits per parameter"
        print(f"{agreed['tensors']} tensors hold experts of unlike formats; the most precise one for all costs {cost}")
    if smoothing:
        rest = f"the inputs of {len(smoothing['not_stored'])} layers cannot be divided in a GGUF"
        print(f"smoothing: {smoothing['folded']} norms folded; {rest}")
    if report["channels"]:
        told = report["channels"]
        sizes = f"{told['file_bytes']:,} bytes in the place of {told['plan_bytes']:,.0f}"
        print(
            f"no GGUF type has a width per channel: {told['tensors']} tensors have the smallest type with an error of at most"
            f" {told['max_error']:g} of their squares, {sizes} ({told['extra_avg_bits']:+.3f} bits per parameter)"
        )
    if report["rounded"]:
        told = report["rounded"]
        print(f"{told['exact']} of {told['layers']} rounded layers have the plan's own codes ({told['rounding']})")
    if any(record["asked_activations"] not in ("", "bf16") for record in report["tensors"]):
        print("activation formats are not stored: llama.cpp computes with activations of its own precision")
