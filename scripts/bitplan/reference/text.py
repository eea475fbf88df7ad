"""Cuts a text into windows of tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.reference.bos import begins_with_bos
from bitplan.reference.text_file import read_text as read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HINT = "Copy the original model's tokenizer files into the folder"
NO_TOKENIZER = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
NO_BOS = "none"


@dataclass(frozen=True)
class TextRange:
    """A range of tokens of a text: the SHA-256 of its file, and token positions from `start` up to `stop`."""

    sha256: str
    start: int
    stop: int

    def overlaps(self, other: "TextRange") -> bool:
        """Return whether the ranges share a token."""
        return self.sha256 == other.sha256 and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class CutText:
    """Windows of tokens (sequences, length) int64, their range in the text, and how each begins: "none" or the id of BOS."""

    tokens: Tensor
    source: TextRange
    bos: str


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint. Code from the checkpoint is never run. Raises `UserError` if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library reports broken files as a plain Exception.
        if type(error) is not Exception and not isinstance(error, NO_TOKENIZER):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise user_error(
            "MODEL-NO-TOKENIZER", folder, f"has no tokenizer that transformers can load: {first}", HINT
        ) from None
    return tokenizer


def first_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase", policy: str) -> list[int]:
    """Return the tokens with which every window begins under a policy: BOS or none.

    "always": BOS; "never": none; "auto": BOS for families that need it. Raises `UserError` if BOS is needed and not defined.
    """
    config = read_json(folder / "config.json")
    if not begins_with_bos(config, policy):
        return []
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else config.get("bos_token_id")
    if not isinstance(bos, int):
        why = "" if policy == "always" else f", which family {config['model_type']!r} needs"
        raise user_error(
            "TEXT-NO-BOS", folder, f"has no BOS token{why}", "Use a tokenizer that has one, or --bos never"
        )
    return [bos]


def prepend_tokens(windows: Tensor, first: Sequence[int]) -> Tensor:
    """Return windows (sequences, length) with the tokens `first` before each: (sequences, len(first) + length)."""
    begin = torch.tensor([list(first)] * len(windows), dtype=torch.int64).view(len(windows), len(first))
    return torch.cat([begin, windows], dim=1)


def bos_name(first: Sequence[int]) -> str:
    """Return how windows begin, as results record it: "none" or the token id of BOS."""
    return " ".join(map(str, first)) or NO_BOS


def cut_text(
    folder: Path, text: Path, length: int, sequences: int | None = None, skip: int = 0, bos: str = "auto"
) -> CutText:
    """Return non-overlapping windows of `length` tokens of a text after its first `skip` tokens; a short last window is dropped.

    BOS, if used, is one of the `length` tokens. Raises `UserError` if the text is too short for one window, or for the
    requested number.
    """
    content, tokenizer = read_text(text), load_tokenizer(folder)
    first = first_tokens(folder, tokenizer, bos)
    own = length - len(first)
    tokens = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    available = max(0, len(tokens) - skip) // own
    if available < (sequences or 1):
        request = f"{sequences} windows" if sequences else "one window"
        after = f" after the first {skip} tokens" if skip else ""
        needed = skip + own * (sequences or 1)
        raise user_error(
            "TEXT-TOO-SHORT",
            text,
            f"has {len(tokens)} tokens, {request} of {length}{after} need {needed}",
            "Give a longer text",
        )
    used = sequences or available
    stop = skip + used * own
    cut = torch.tensor(tokens[skip:stop], dtype=torch.int64).view(used, own)
    return CutText(prepend_tokens(cut, first), TextRange(text_digest(text), skip, stop), bos_name(first))


def text_digest(text: Path) -> str:
    """Return the SHA-256 of a text's file."""
    return hashlib.sha256(Path(text).read_bytes()).hexdigest()


def windows(folder: Path, text: Path, length: int, sequences: int | None = None, skip: int = 0) -> Tensor:
    """Return the tokens of `cut_text`, (sequences, length) int64, without BOS policy. Raises `UserError` as it does."""
    return cut_text(folder, text, length, sequences, skip).tokens
