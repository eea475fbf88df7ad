"""What a GGUF file has to say of the original's tokenizer, and whether llama.cpp then tokenizes as the original does.

llama.cpp fills in what a file leaves out: pre-tokenizer `llama-bpe` adds a BOS, a SentencePiece vocabulary a BOS and a space. The
original's own behaviour is therefore asked of its tokenizer and written out.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.runtimes.gguf import probe_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENGLISH}|{LETTERS}|\p{{N}}{{1,3}}|{REST}"
DIGITS = "digits"
# What a byte-level pre-tokenizer splits at, one part after another: llama.cpp's name for it. `smaug-bpe` is `llama-bpe` with merges.
PRE_TOKENIZERS: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (LLAMA3,): "smaug-bpe",
    (rf"{ENGLISH}|{LETTERS}|\p{{N}}|{REST}",): "qwen2",
    (DIGITS, GPT2): "starcoder",
}
WITHOUT_MERGES = {"smaug-bpe": "llama-bpe"}  # a word that is a token is taken whole
PROBES = (
    "Once upon a time there was a boy named Karl.",
    "one line\nanother\n\n\nand a third   ",
    "tabs\tand\t\tmore\r\n",
    "1234567 3.14159 007 2026-11-26",
    "It's what I'd say, WE'VE said and they'll say",
    "naïve café Ångström Привет 我想在apple工作1314151天～ 한국어 🚀",
    "x = [i**2 for i in range(10)]  # squares !!!???...---===",
)
MOST_NAMES = 5
MOST_CHARACTERS = 12
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"  # of SentencePiece vocabularies only
BLANK = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Facts:
    """What the converter is given: the name for a pre-tokenizer that it does not know (None where neither do we), keys of the
    file, tokens {id: (text, special)} that were added to the tokenizer, and how many tokens the tokenizer has."""

    pre_tokenizer: str | None
    keys: Mapping[str, Any]
    added: Mapping[int, tuple[str, bool]]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON holds them."""
        return {"pre": self.pre_tokenizer, "keys": self.keys, "added": self.added, "tokens": self.tokens}


def facts_of(tokenizer: "PreTrainedTokenizerBase") -> Facts:
    """Return what a GGUF file has to say of a tokenizer."""
    added = {int(i): (token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    tokens = 1 + max(tokenizer.get_vocab().values())
    return Facts(pre_tokenizer_of(tokenizer), _keys_of(tokenizer), added, tokens)


def _keys_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return {key: value}: whether a text begins with BOS and ends with EOS, which token the BOS is, and whether a SentencePiece
    vocabulary is given a text with a space before it."""
    before, after = ends_of(tokenizer)
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids[:1])
    keys: dict[str, Any] = {"tokenizer.ggml.add_bos_token": len(before) > 0}
    keys["tokenizer.ggml.add_eos_token"] = bool(after) and after[0] == tokenizer.eos_token_id
    keys[SPACE_PREFIX] = bool(first) and first[0].startswith(BLANK)
    if before:
        keys["tokenizer.ggml.bos_token_id"] = before[0]
    return keys


def ends_of(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before a text, and those after it."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    start = next(starts, 0)
    return whole[:start], whole[start + len(plain) :]


def _parts(entry: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what the parts of a pre-tokenizer split at; "" for one that is not known here."""
    kind = (entry or {}).get("type")
    if kind == "Sequence":
        for part in entry["pretokenizers"]:
            yield from _parts(part)
    elif kind == "Split":
        yield entry["pattern"].get("Regex", "") if entry["behavior"] == "Isolated" and not entry["invert"] else ""
    elif kind == "Digits":
        yield DIGITS if entry["individual_digits"] else ""
    elif kind == "ByteLevel":
        # Without a pattern of its own it only turns bytes into letters.
        yield from [GPT2] * entry.get("use_regex", True)
    else:
        yield ""


def pre_tokenizer_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return llama.cpp's name of a byte-level BPE pre-tokenizer, by the patterns that it splits at; None for another one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    held = json.loads(backend.to_str())
    name = PRE_TOKENIZERS.get(tuple(_parts(held.get("pre_tokenizer"))))
    return WITHOUT_MERGES.get(name, name) if held["model"].get("ignore_merges") else name


def warn_of_tokens_without_rows(facts: Facts, rows: int, folder: Path) -> None:
    """Log a warning that names the tokens for which the embedding has no row: no file can hold them."""
    behind = [repr(text) for i, (text, _) in sorted(facts.added.items()) if i >= rows]
    if facts.tokens > rows:
        named = f": {', '.join(behind[:MOST_NAMES])}{', ...' if len(behind) > MOST_NAMES else ''}" if behind else ""
        log.warning(
            "%s: the tokenizer has %d tokens, the embedding %d rows. The GGUF leaves out the tokens from %d on%s; texts without them"
            " are not affected. If they matter, resize the embedding: model.resize_token_embeddings(%d)",
            *(folder, facts.tokens, rows, rows, named, facts.tokens),
        )


def _tokens_of(path: Path, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
    """Return the tokens that llama.cpp makes of texts, and whether it ended the process at the text behind the last of them. Any other failure
    raises RuntimeError."""
    command = [sys.executable, probe_tokens.__file__, str(path)]
    # Without a backtrace: where llama.cpp ends the process, it would start a debugger that prints among the tokens.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    ran = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False, env=environment)
    if ran.returncode > 0:
        raise RuntimeError(f"the probe of tokens failed: {ran.stderr.strip()[-500:]}")
    marked = (
        line.removeprefix(probe_tokens.MARK) for line in ran.stdout.splitlines() if line.startswith(probe_tokens.MARK)
    )
    return [json.loads(tokens) for tokens in marked], ran.returncode < 0


def probed(path: Path, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[str], list[str]]:
    """Return the probe texts that llama.cpp turns into other tokens than the original tokenizer, and those at which it ends the process."""
    differing, fatal, waiting = [], [], list(PROBES)
    while waiting:
        made, ended = _tokens_of(path, waiting)
        differing += [text for text, ids in zip(waiting, made, strict=False) if ids != tokenizer(text).input_ids]
        fatal += waiting[len(made) : len(made) + 1] if ended else []
        waiting = waiting[len(made) + 1 :] if ended else []
    return differing, fatal


def _lost(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the characters of texts that the original tokenizer cannot give back, those of ASCII first; a space, which it may strip, is none."""
    return [
        each
        for each in sorted({each for text in texts for each in text} - {" "})
        if each not in tokenizer.decode(tokenizer(each, add_special_tokens=False).input_ids)
    ]


def warn_of_other_tokens(path: Path, shown: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Log a warning when llama.cpp tokenizes some probe otherwise than the original does, and one when it ends the process at some."""
    differing, fatal = probed(path, tokenizer)
    scored = "Perplexity here is scored on the original's tokens and not affected"
    if fatal:
        absent = ", ".join(map(repr, _lost(fatal, tokenizer)[:MOST_CHARACTERS]))
        reason = f": the vocabulary has no tokens for characters such as {absent}" if absent else ""
        log.warning(
            "%s: llama.cpp ends the process at %d of %d probe texts, for example %r%s. A prompt or chat template with such text ends"
            " llama-server and every other program of llama.cpp. %s",
            *(shown, len(fatal), len(PROBES), fatal[0], reason, scored),
        )
    if differing:
        log.warning(
            "%s: llama.cpp tokenizes %d of %d probe texts otherwise than the original tokenizer, for example %r. %s; prompts are",
            *(shown, len(differing), len(PROBES), differing[0], scored),
        )
