"""The full-precision GGUF of a model, by llama.cpp's own converter."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside
from bitplan.models.checkpoint import FLOATS, Checkpoint
from bitplan.models.complete import check_loading
from bitplan.models.walk import check_finite
from bitplan.reference.text import load_tokenizer
from bitplan.runtimes.gguf import run_converter
from bitplan.runtimes.gguf.vocabulary import Facts, facts_of, warn_of_other_tokens, warn_of_tokens_without_rows

log = logging.getLogger(__name__)
PRE_TOKENIZERS = {"gpt2": "gpt-2", "opt": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
DEFAULT_PRE_TOKENIZER = "llama-bpe"
GUESSED = "unknown pre-tokenizer"
# How the converter logs, but for its banner of stars about an unknown pre-tokenizer, which is answered here.
WARNING = re.compile(r"WARNING:[\w.-]+:(?!\s*$|\*\*)(?P<text>.*\S)")
# What it warns of and what is no loss: the usual rotary embedding, pairs of texts, tokens without rows (named here), keys replaced here.
HARMLESS = re.compile(
    r"Unknown RoPE type: default|Unknown \w* ?\w* ?separator|Unknown middle|.*<pair>|ignore tokens? |Duplicated key"
)
# What the converter reads from config.json and transformers 5 does not write: {model type: {key: where its value stands}}.
OLD_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"n_ctx": ("n_positions",)},
    "gpt_neox": {"rotary_pct": ("rope_parameters", "partial_rotary_factor")},
}
# What is fixed in transformers' code of a family, and is a key of the configuration to the converter.
FIXED_KEYS: dict[str, dict[str, str]] = {"deepseek_v3": {"scoring_func": "sigmoid"}}
HALF_LIMIT = 65504.0
FULL = os.strerror(errno.ENOSPC)
OUT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def converter_folder() -> Path:
    """Return the folder of llama.cpp's converter, which the set-up takes from the runtime's own source distribution."""
    folder = Path(sys.prefix) / "share" / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise user_error(folder, "does not hold llama.cpp's converter", "Run `make setup`")
    return folder


def exact_type(checkpoint: Checkpoint) -> str:
    """Return the converter's type that holds every weight of a checkpoint exactly: f32 as soon as one matrix is float32."""
    kinds = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) >= 2}
    return OUT_TYPES.get(next(iter(kinds)), "f32") if len(kinds) == 1 else "f32"


def _sources(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Return {tensor: (file, its name there)} for all that the converter reads: what the model loads, a tied matrix once.

    It is called the embedding, also where it is stored as the output: llama.cpp reads no other.
    """
    loading = checkpoint.loading
    sources = {name: (str(info.file.resolve()), info.key) for name, info in checkpoint.tensors.items()}
    if checkpoint.tied and loading.output is not None:
        held = sources.pop(loading.output)
        if loading.embedding is None:
            sources[str(loading.embedding_parameter)] = held
    return sources


def _old_keys(config: dict) -> dict:
    """Return the keys that the converter looks for in vain in a configuration, with their values."""
    found: dict = dict(FIXED_KEYS.get(config.get("model_type", ""), {}))
    for key, path in OLD_KEYS.get(config.get("model_type", ""), {}).items():
        newer = reduce(lambda held, part: held.get(part) if isinstance(held, dict) else None, path, config)
        value = config.get(key, newer)
        if value is not None:
            found[key] = value
    return found


def _check_weights(checkpoint: Checkpoint, out_type: str) -> None:
    """Raise `UserError` when a tensor holds NaN or infinity, or in f16 a value beyond its range: the converter writes them as they are."""
    for name, info in checkpoint.tensors.items():
        if info.dtype not in FLOATS:
            continue
        read = checkpoint.read([name])
        check_finite(read, checkpoint.folder)
        if out_type == "f16" and info.dtype != "F16" and len(info.shape) > 1 and read[name].abs().max() > HALF_LIMIT:
            what = f"tensor {name} holds values over {HALF_LIMIT:,.0f}, which f16 does not hold"
            raise user_error(checkpoint.folder, what, "Convert with --type bf16 or f32 (settings: base_type)")


def convert(
    checkpoint: Checkpoint,
    output: Path,
    out_type: str | None = None,
    name: str | None = None,
    check: Callable[[Path, Path], None] | None = None,
) -> None:
    """Write the checkpoint as GGUF in its own precision, or in `out_type`. Raises `UserError` with the converter's last words.

    The file is called `name`, or as the folder; `check`(file, `output`) may refuse it before it is there. Logs what the converter warns of, tokens that the file cannot hold, and texts that
    llama.cpp tokenizes otherwise than the original does.
    """
    folder, kind = converter_folder(), out_type or exact_type(checkpoint)
    check_loading(checkpoint)
    _check_weights(checkpoint, kind)
    tokenizer = load_tokenizer(checkpoint.folder)
    facts, rows = facts_of(tokenizer), checkpoint.config.get("vocab_size")
    if isinstance(rows, int):
        warn_of_tokens_without_rows(facts, rows, checkpoint.folder)
    with write_aside(output) as aside:
        command = [sys.executable, run_converter.__file__, str(folder), str(checkpoint.folder), "--outfile", str(aside)]
        named = ["--outtype", kind, "--model-name", name or checkpoint.folder.resolve().name]
        _run([*command, *named], _for_converter(facts, checkpoint), checkpoint, output)
        warn_of_other_tokens(aside, output, tokenizer)
        if check is not None:
            check(aside, output)


def _for_converter(facts: Facts, checkpoint: Checkpoint) -> str:
    """Return what run_converter.py reads: facts of the tokenizer and of the configuration."""
    default = PRE_TOKENIZERS.get(checkpoint.config.get("model_type", ""), DEFAULT_PRE_TOKENIZER)
    more = {"default_pre": default, "hparams": _old_keys(checkpoint.config), "sources": _sources(checkpoint)}
    return json.dumps({**facts.to_json(), **more})


def _run(command: list[str], facts: str, checkpoint: Checkpoint, output: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(command, input=facts, capture_output=True, text=True, check=False, env=environment)
    log.debug("%s", made.stderr)
    for line in made.stderr.splitlines():
        warning = WARNING.fullmatch(line)
        if warning and HARMLESS.match(warning["text"]):
            continue
        if warning or line.startswith(GUESSED):
            log.warning("llama.cpp's converter: %s", warning["text"] if warning else line)
    if made.returncode:
        if FULL in made.stderr:
            raise OSError(errno.ENOSPC, FULL, str(output))
        last = (made.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("ERROR:hf-to-gguf:")
        raise user_error(
            checkpoint.folder,
            f"is not converted to {output} by llama.cpp: {last}",
            "Run with --verbose for all it says",
        )
