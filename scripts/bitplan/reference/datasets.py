"""Calibration windows from a text, a saved text, or a well-known data set of the hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import nearest, user_error
from bitplan.models.checkpoint import Checkpoint
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import load_reference
from bitplan.reference.text import first_tokens, load_tokenizer, prepend_tokens, read_text

log = logging.getLogger(__name__)
OFFLINE = "Give a text file, or connect and leave HF_HUB_OFFLINE unset"
TRIES_PER_WINDOW = 200


@dataclass(frozen=True)
class TextSet:
    """A file of a data set on the hub, its text column, and the separator that joins texts (None: a window never spans two)."""

    repository: str
    file: str
    column: str
    joined_by: str | None
    revision: str | None = None


# The training splits that SparseGPT and GPTQ calibrate on.
TEXT_SETS = {
    "wikitext2": TextSet("Salesforce/wikitext", "wikitext-2-raw-v1/train-00000-of-00001.parquet", "text", "\n\n"),
    "ptb": TextSet("ptb-text-only/ptb_text_only", "penn_treebank/train/0000.parquet", "sentence", " ", "refs/convert/parquet"),
    "c4": TextSet("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "text", None),
}  # fmt: skip


def download_texts(name: str) -> list[str]:
    """Return the texts of a data set in `TEXT_SETS`, from the hub or its cache. Raises `UserError`."""
    import pandas as pd
    from huggingface_hub import hf_hub_download

    dataset = TEXT_SETS[name]
    try:
        path = hf_hub_download(dataset.repository, dataset.file, repo_type="dataset", revision=dataset.revision)
        table = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_json(path, lines=True)
        return table[dataset.column].tolist()
    except (OSError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:160] or type(error).__name__
        raise user_error(name, f"cannot be fetched from the hub ({dataset.repository}): {first}", OFFLINE) from None


def _tokens(tokenizer, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=torch.int64)


def _cut_windows(tokens: Tensor, length: int, count: int | None, seed: int, source: object) -> Tensor:
    """Return `count` random non-overlapping windows in the text's order; all of them for None, or if there are fewer."""
    available = len(tokens) // length
    if not available:
        what = f"has {len(tokens)} tokens, one window needs {length}"
        raise user_error(source, what, "Give a longer text, or a smaller --seqlen")
    windows = tokens[: available * length].view(available, length)
    if count is None or available <= count:
        if count is not None and available < count:
            log.warning(
                "%s has %d windows of %d tokens, fewer than %d: using them all", source, available, length, count
            )
        return windows
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count]
    return windows[chosen.sort().values]


def _draw_windows(texts: Sequence[str], tokenizer, length: int, count: int, seed: int, source: str) -> Tensor:
    """Return `count` windows, each at a random place of one text that is long enough."""
    generator = torch.Generator().manual_seed(seed)
    windows: list[Tensor] = []
    for place in torch.randint(len(texts), (TRIES_PER_WINDOW * count,), generator=generator).tolist():
        tokens = _tokens(tokenizer, texts[place])
        if len(tokens) > length:
            start = int(torch.randint(len(tokens) - length, (1,), generator=generator))
            windows.append(tokens[start : start + length])
        if len(windows) == count:
            return torch.stack(windows)
    raise user_error(source, f"has too few texts of more than {length} tokens", "Give a smaller --seqlen")


def calibration_tokens(
    source: str, checkpoint: Checkpoint, fingerprint: str, length: int, count: int | None, seed: int
) -> Tensor:
    """Return windows of calibration tokens, (windows, length) int64.

    `source` is a text file, a text saved by layer_stats.py (all of it is used), or c4, wikitext2 or ptb. With `count` None all
    windows of a text are used. Raises `UserError`.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        return load_reference(path, checkpoint, fingerprint).tokens
    known = TEXT_SETS.get(source) if not path.exists() else None
    if known is None and not path.exists():
        hint = nearest(source, TEXT_SETS) or f"Give a UTF-8 text, or one of {', '.join(TEXT_SETS)}"
        raise user_error(source, "is no file, and no data set that is known by this name", hint)
    tokenizer = load_tokenizer(checkpoint.folder)
    if known is None:
        return _cut_windows(_tokens(tokenizer, read_text(path)), length, count, seed, path)
    texts = download_texts(source)
    if known.joined_by is None:
        if count is None:
            raise user_error(source, "has no end to take all windows of", "Give a number of windows")
        return _draw_windows(texts, tokenizer, length, count, seed, source)
    return _cut_windows(_tokens(tokenizer, known.joined_by.join(texts)), length, count, seed, source)


def calibration_windows(model: PreparedModel, source: str, length: int, count: int | None, seed: int) -> Tensor:
    """Return the calibration windows of a model, (windows, length) int64, each with BOS if the model's policy asks for it.

    Windows of a saved text are unchanged. Also raises `UserError` for windows longer than the model's learned positions.
    """
    facts = (model.checkpoint, model.info.fingerprint)
    if Path(source).suffix == ".safetensors":
        return calibration_tokens(source, *facts, length, count, seed)
    model.model.check_length(length)
    folder = model.checkpoint.folder
    first = first_tokens(folder, load_tokenizer(folder), model.model.bos)
    return prepend_tokens(calibration_tokens(source, *facts, length - len(first), count, seed), first)
