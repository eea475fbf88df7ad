"""From a text to windows of tokens."""

from pathlib import Path

import torch
from torch import Tensor

from bitplan.errors import user_error

# No BOS is added; stated in every result, since perplexities under another policy are another number.
BOS_POLICY = "none"


def read_text(path: Path) -> str:
    """Return a UTF-8 text. Raises `UserError` when it is missing, empty or no text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise user_error(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise user_error(path, f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from None
    if not text.strip():
        raise user_error(path, "is empty", "Give a text of some thousand words")
    return text


def windows(tokenizer_folder: Path, text: Path, length: int, sequences: int | None = None) -> Tensor:
    """Return non-overlapping windows of tokens, (sequences, length) int64, from the start of a text; a short rest is dropped.

    Raises `UserError` when the text is shorter than one window, or than the windows asked for.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokens = tokenizer(read_text(text), add_special_tokens=False, verbose=False).input_ids
    held = len(tokens) // length
    if held < (sequences or 1):
        wanted = f"{sequences} windows" if sequences else "one window"
        raise user_error(
            text,
            f"has {len(tokens)} tokens, {wanted} of {length} need {length * (sequences or 1)}",
            "Give a longer text",
        )
    used = sequences or held
    return torch.tensor(tokens[: used * length], dtype=torch.int64).view(used, length)
