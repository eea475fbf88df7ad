"""The names of a checkpoint's files: one table for reading, downloading, copying and protecting them.

All files are in the folder's root. Names are `fnmatch` patterns.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

# transformers loads the first if it exists, else the files that the second names.
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_END = ".safetensors.index.json"
WEIGHTS = ("*.safetensors",)
# The other files that determine what a model computes or how text is tokenized.
SETTINGS_AND_TOKENIZER = (
    "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "chat_template*.json", "*.jinja",
)  # fmt: skip
# Files that may contain weights, of the model or of something else.
OTHER_WEIGHTS = ("*.safetensors", f"*{INDEX_END}", "pytorch_model*.bin", "consolidated*.pth", "adapter_*.bin")
PARTS = (*WEIGHTS, *SETTINGS_AND_TOKENIZER)
# A model's description on its hub, which names its license.
CARD = "README.md"
# What a download from a hub was: id, revision, commit, files.
RECORD = ".download.json"


def match_names(names: Iterable[str], patterns: Iterable[str] = PARTS) -> list[str]:
    """Return the names that match one of the patterns, in their order."""
    globs = tuple(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in globs)]
