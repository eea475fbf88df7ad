"""What a folder of packed safetensors takes besides the layers that a plan chooses formats for."""

from collections.abc import Collection

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.checkpoint_files import INDEX
from bitplan.runtimes.transformers.checkpoint import stored_once

# Bytes at most: an entry of a file's header or of the index without its name; the tensors of a packed layer, and how often a name stands
# in a header, the index and config.json; the entry of config.json without its name, with shapes and scales of a whole matrix; the schemes.
ENTRY, TENSORS, NAMES, LAYER, SCHEMES = 150, 4, 9, 256, 1 << 14


def bytes_besides(checkpoint: Checkpoint, layers: Collection[str]) -> int:
    """Return the most bytes of a plan's folder besides the codes and scales of `layers`: tokenizer, configuration, headers, and all other
    tensors as the checkpoint has them."""
    matrices = {f"{name}.weight" for name in layers}
    keys = {key: name for name, key in checkpoint.loading.names.items()}
    total = SCHEMES + (checkpoint.folder / "config.json").stat().st_size
    total += sum(file.stat().st_size for file in checkpoint.others() if file.name not in (INDEX, "config.json"))
    for key, tensor in stored_once(checkpoint).items():
        chosen = keys.get(key) in matrices
        total += NAMES * len(key) + (TENSORS * ENTRY + LAYER if chosen else ENTRY + LAYER + tensor.nbytes)
    return total
