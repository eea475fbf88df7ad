"""A plan as a GGUF file: from the model or a converted base file to the file and its report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from bitplan.runtimes.gguf.options import DEFAULTS, GGUFOptions, LayerTypes, TensorContents
from bitplan.runtimes.gguf.packed_tensors import packed_plans, packed_report, packed_types, with_packed
from bitplan.runtimes.gguf.rounded_tensors import exact_layers, rounded_report, tensor_codes, with_unused
from bitplan.runtimes.gguf.tensor_types import nearest_types, smallest_types
from bitplan.runtimes.gguf.type_lines import NAME, more_than_types, type_lines, write_beside
from bitplan.runtimes.gguf.type_lines import beside as beside_file
from bitplan.runtimes.transformers.checkpoint import write_checkpoint


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
            raise user_error(
                "GGUF-BAD-SHAPE", base, what, "It belongs to a different model: create it with scripts/convert_gguf.py"
            )


def export_plan(
    base: Path,
    output: Path,
    info: ModelInfo,
    plan: Plan,
    options: GGUFOptions = DEFAULTS,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Write the plan's GGUF and return its report.

    Layers with a width per channel get the smallest type within `options.max_error`; `base` holds them compressed (`base_file`).
    Layers in a format whose codes a type holds are stored as these (`options.match`). Those of a rounded plan have its very codes; their rows are found by the values of the `checkpoint`, by
    default the one of `info`. Raises `UserError` when `base` lacks a layer that the plan changes.
    """
    reader = read_gguf(base)
    check_shapes(reader, base, info)
    factors = column_factors(reader, info, plan.smoothing)
    packed = packed_types(reader, info, plan, options.match, factors)
    types = {}
    if options.match == "distortion":
        types = nearest_types(reader, info, plan, factors, held=packed.exact)
    types |= smallest_types(reader, info, plan, options.max_error) if plan.compressed else {}
    exact = exact_layers(info, plan, packed.exact)
    types = {name: kind for name, kind in types.items() if name not in exact} | packed.types
    instead = LayerTypes(types, exact | packed.exact, packed.reasons)
    records = plan_tensors(reader, info, plan, options.unquantized, instead=instead)
    _check_complete(base, records, plan, info)
    codes = tensor_codes(records, plan, exact, checkpoint or Checkpoint.open(Path(info.path)), info) if exact else {}
    plans = packed_plans(records, plan, packed.types, codes)
    records = with_packed(with_unused(records, plan, codes), plans)
    contents = TensorContents(options.importance, factors, codes, plans)
    rewrite(base, output, records, contents, options.threads, options.keys)
    write_beside(output, type_lines(records))
    beside = {
        "smoothing": _smoothing_report(plan),
        "rounded": rounded_report(records, plan, codes),
        "packed": packed_report(records, plan),
        "tensor_types": {"file": beside_file(output, NAME).name, "without": more_than_types(plan, bool(plans))},
        "channels": _channels_report(records, plan, info, options.max_error),
    }
    return {**report(records, output, info), **beside}


def _check_complete(base: Path, records: Sequence[TensorRecord], plan: Plan, info: ModelInfo) -> None:
    """Raise `UserError` when the file has no tensor for a layer that the plan changes."""
    held = {layer for record in records for layer in record.layers}
    changed = [layer for layer in info.quantizable if plan.of(layer.name).quantized]
    changed += [layer for layer in plan.embeddings(info) if not layer.tied]
    missing = [layer.name for layer in changed if layer.name not in held]
    if missing:
        hint = "It belongs to a different model, or llama.cpp has no tensor name for this layer"
        raise user_error("GGUF-NO-TENSOR", base, f"has no tensor for {missing[0]}", hint)


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
    if report["packed"]:
        told = report["packed"]
        print(
            f"{told['tensors']} tensors hold the plan's own codes in {told['extra_bytes']:+,d} bytes (export.match: exact)"
        )
    if report["rounded"]:
        told = report["rounded"]
        print(f"{told['exact']} of {told['layers']} rounded layers have the plan's own codes ({told['rounding']})")
    if any(record["asked_activations"] not in ("", "bf16") for record in report["tensors"]):
        print("activation formats are not stored: llama.cpp computes with activations of its own precision")
