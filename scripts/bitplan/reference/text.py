"""From a text to windows of tokens."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitplan.core.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HINT = "Copy the files of the original's tokenizer into the folder"
NO_TOKENIZER = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
# No BOS is added; stated in every result, since perplexities under another policy are another number.
BOS_POLICY = "none"


def read_text(path: Path) -> str:
    """Return a UTF-8 text. Raises `UserError` when it is missing, empty or no text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise user_error(path, f"cannot be read: {error.strerror}", "Give a UTF-8 text") from None
    except UnicodeDecodeError as error:
        raise user_error(path, f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from None
    if not text.strip():
        raise user_error(path, "is empty", "Give a text of some thousand words")
    return text


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint. Code that it brings along is never run. Raises `UserError` when there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # What the tokenizers library finds broken comes as a plain Exception, which has no class of its own.
        if type(error) is not Exception and not isinstance(error, NO_TOKENIZER):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise user_error(folder, f"has no tokenizer that transformers reads: {first}", HINT) from None
    return tokenizer


def windows(tokenizer_folder: Path, text: Path, length: int, sequences: int | None = None, skip: int = 0) -> Tensor:
    """Return non-overlapping windows of tokens, (sequences, length) int64, of a text after its first `skip`; a short rest is dropped.

    Raises `UserError` when the text is shorter than one window, or than the windows asked for.
    """
    content, tokenizer = read_text(text), load_tokenizer(tokenizer_folder)
    tokens = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    held = len(tokens) // length - skip
    if held < (sequences or 1):
        wanted = f"{sequences} windows" if sequences else "one window"
        after = f" after the first {skip}" if skip else ""
        raise user_error(
            text,
            f"has {len(tokens)} tokens, {wanted} of {length}{after} need {length * (skip + (sequences or 1))}",
            "Give a longer text",
        )
    used = sequences or held
    return torch.tensor(tokens[skip * length : (skip + used) * length], dtype=torch.int64).view(used, length)
