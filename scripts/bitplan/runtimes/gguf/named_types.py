"""Lines for `llama-quantize --tensor-type-file` from formats by name alone: a plan of any table, without the model that it is of."""

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

from bitplan.core.errors import Problem, UserError, nearest
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.ggml import block_of, fallback
from bitplan.models.families import merged_name
from bitplan.runtimes.gguf.file import KEPT_AS_CONVERTED, architecture_names, parts_of, read_gguf, sixteen_bit
from bitplan.runtimes.gguf.format_types import OWN
from bitplan.runtimes.gguf.type_lines import line_of

TENSOR = re.compile(r"^(blk\.\d+\..+|token_embd|output)\.weight$")
Kind = GGMLQuantizationType


def lines_for(formats: Mapping[str, str], base: Path | None, unquantized: str = "f16") -> dict[str, str]:
    """Return {pattern: type} for layers {name: format}, as the export of the same plan has them.

    Names are those of tensors (blk.0.attn_q.weight) or, with the `base` file that llama-quantize is to start from, of a checkpoint's layers.
    With it every matrix has a line, those that are not named in `unquantized`, and types fit the rows. Raises `UserError` with every name
    that is no tensor and every format that is no type of llama.cpp.
    """
    kinds = _kinds(formats)
    if base is None:
        _check_names(formats)
        sixteen = Kind[unquantized.upper()]
        return dict(line_of(name, (kinds[form] or sixteen).name) for name, form in formats.items())
    reader = read_gguf(base)
    asked = _by_tensor({name: kinds[form] for name, form in formats.items()}, reader, base)
    matrices = (tensor for tensor in reader.tensors if _has_line(tensor))
    return dict(
        line_of(each.name, _fitting(each, asked.get(each.name), Kind[unquantized.upper()])) for each in matrices
    )


def _kinds(formats: Mapping[str, str]) -> dict[str, Kind | None]:
    """Return the type that each format is; None for 16 bits. Raises `UserError` for formats that are no types."""
    kinds, problems = {}, []
    for form in dict.fromkeys(formats.values()):
        name = OWN.get(form.lower(), form.upper())
        kinds[form] = None if form.lower() == UNQUANTIZED else Kind.__members__.get(name)
        if kinds[form] is None and form.lower() != UNQUANTIZED:
            hint = nearest(form.lower(), OWN) or "Use types of llama.cpp alone, as --palette q4_k q6_k"
            problems.append(Problem("ALLOCATE-NO-TYPE", f"format {form}", "is not a type of llama.cpp", hint))
    if problems:
        raise UserError(problems)
    return kinds


def _check_names(names: Mapping[str, str]) -> None:
    """Raise `UserError` for names that are not those of tensors."""
    hint = "Give --base, the GGUF file of the model, which says how its layers are called there"
    wrong = [name for name in names if not TENSOR.match(name)]
    if wrong:
        raise UserError(
            Problem("ALLOCATE-NO-TENSOR", f"layer {name}", "does not name a tensor of a GGUF file", hint)
            for name in wrong[:3]
        )


def _by_tensor(kinds: Mapping[str, Kind | None], reader: GGUFReader, base: Path) -> dict[str, Kind | None]:
    """Return {tensor: type}; of several layers in one tensor, experts, the type of most bits. Raises `UserError` for what it lacks."""
    names, held = architecture_names(reader), {tensor.name for tensor in reader.tensors}
    found: dict[str, Kind | None] = {}
    absent = []
    for layer, kind in kinds.items():
        tensors = list(_tensors_of(layer, names, held))
        absent += [] if tensors else [layer]
        for name in tensors:
            found[name] = max(found.get(name, kind), kind, key=_bits)
    if absent:
        hint = "It belongs to another model, or the table's layers have other names"
        raise UserError(
            Problem("ALLOCATE-NO-TENSOR", str(base), f"has no tensor for {name}", hint) for name in absent[:3]
        )
    return found


def _tensors_of(layer: str, names: object, held: Container[str]) -> Iterator[str]:
    """Yield the tensors that hold a layer: its own name, llama.cpp's name for it, or the two halves of latent attention."""
    bare = layer.removesuffix(".weight")
    tensor = f"{names.get_name(bare) or names.get_name(merged_name(bare))}.weight"
    yield from (layer,) if layer in held else (tensor,) if tensor in held else parts_of(tensor, held)


def _bits(kind: Kind | None) -> float:
    values, size = block_of(kind or Kind.F16)
    return 8 * size / values


def _has_line(tensor: ReaderTensor) -> bool:
    """Return whether a tensor is a matrix that the export writes in a type of its own."""
    matrix = len(tensor.shape) > 1 and int(np.prod(tensor.shape[1:])) > 1
    return matrix and tensor.name.endswith(".weight") and not tensor.name.endswith(KEPT_AS_CONVERTED)


def _fitting(tensor: ReaderTensor, kind: Kind | None, sixteen: Kind) -> str:
    """Return the type of a tensor: what is asked for, or what llama.cpp has for such rows; None stands for 16 bits."""
    return (sixteen_bit(tensor, sixteen)[0] if kind is None else fallback(kind, int(tensor.shape[0]))).name
