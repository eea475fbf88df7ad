"""What a checkpoint is made of: the names of its files, in one table for reading, fetching, copying and protecting them.

All stand in the folder's root. Names are `fnmatch` patterns.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

INDEX = "model.safetensors.index.json"
WEIGHTS = ("*.safetensors",)
# Whatever else decides what a model computes, or how its text becomes tokens.
SETTINGS_AND_TOKENIZER = (
    "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "chat_template*.json", "*.jinja",
)  # fmt: skip
PARTS = (*WEIGHTS, *SETTINGS_AND_TOKENIZER)


def matching(names: Iterable[str], patterns: Iterable[str] = PARTS) -> list[str]:
    """Return the names that match one of the patterns, in their order."""
    wanted = tuple(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
