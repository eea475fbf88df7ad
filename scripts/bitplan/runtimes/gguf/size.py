"""What a GGUF file of a plan takes besides the layers that the plan chooses formats for."""

from collections.abc import Collection
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT

from bitplan.models.layers import ModelInfo
from bitplan.runtimes.gguf.file import KEPT_AS_CONVERTED, layer_names, read_gguf

# Bytes of what a file says of its plan beside the base file's own keys, at most: metadata.py.
KEYS = 1024
SIXTEEN_BITS = 2


def bytes_besides(info: ModelInfo, layers: Collection[str], base: Path) -> int:
    """Return the most bytes of a plan's file besides `layers`: header, vocabulary, padding of every tensor, and all other tensors.

    `base` is the full-precision GGUF that the file is made from. Other layers have 16 bits; what belongs to no layer stays as it is there.
    Raises `UserError` where `base` is no GGUF of a model.
    """
    reader, chosen = read_gguf(base), set(layers)
    names = layer_names(reader, info)
    total = int(reader.data_offset) + KEYS
    for tensor in reader.tensors:
        own = names.get(tensor.name, ())
        total += int(reader.alignment or GGUF_DEFAULT_ALIGNMENT) - 1
        if not own or tensor.name.endswith(KEPT_AS_CONVERTED):
            total += int(tensor.n_bytes)
        elif not chosen.issuperset(own):
            total += SIXTEEN_BITS * int(tensor.n_elements)
    return total
