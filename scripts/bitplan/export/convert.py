"""The full-precision GGUF of a model, by llama.cpp's own converter."""

import json
import logging
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

from bitplan.errors import user_error
from bitplan.export import run_converter
from bitplan.files import folder_aside, written_aside
from bitplan.models.checkpoint import FLOATS, Checkpoint
from bitplan.models.complete import check_loading
from bitplan.models.walk import check_finite

log = logging.getLogger(__name__)
PRE_TOKENIZERS = {"gpt2": "gpt-2", "opt": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
DEFAULT_PRE_TOKENIZER = "llama-bpe"
GUESSED = "unknown pre-tokenizer"
# What the converter reads from config.json and transformers 5 does not write: {model type: {key: where its value stands}}.
OLD_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"n_ctx": ("n_positions",)},
    "gpt_neox": {"rotary_pct": ("rope_parameters", "partial_rotary_factor")},
}
# What is fixed in transformers' code of a family, and is a key of the configuration to the converter.
FIXED_KEYS: dict[str, dict[str, str]] = {"deepseek_v3": {"scoring_func": "sigmoid"}}
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


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raise `UserError` when a tensor holds NaN or infinity, which the converter would write as it is."""
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOATS:
            check_finite(checkpoint.read([name]), checkpoint.folder)


def convert(checkpoint: Checkpoint, output: Path, out_type: str | None = None) -> None:
    """Write the checkpoint as GGUF in its own precision, or in `out_type`. Raises `UserError` with the converter's last words."""
    folder = converter_folder()
    check_loading(checkpoint)
    _check_weights(checkpoint)
    name = PRE_TOKENIZERS.get(checkpoint.config.get("model_type", ""), DEFAULT_PRE_TOKENIZER)
    with written_aside(output) as aside, folder_aside(aside.parent) as work:
        listed = work / "sources.json"
        listed.write_text(json.dumps(_sources(checkpoint)), encoding="utf-8")
        keys = json.dumps(_old_keys(checkpoint.config))
        command = [sys.executable, run_converter.__file__, str(folder), name, keys, str(listed), str(checkpoint.folder)]
        wanted = ["--outfile", str(aside), "--outtype", out_type or exact_type(checkpoint)]
        _run([*command, *wanted, "--model-name", checkpoint.folder.resolve().name], checkpoint, output)


def _run(command: list[str], checkpoint: Checkpoint, output: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    log.debug("%s", made.stderr)
    for line in made.stderr.splitlines():
        if line.startswith(GUESSED):
            log.warning("%s; check how the file tokenizes a prompt", line)
    if made.returncode:
        last = (made.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("ERROR:hf-to-gguf:")
        raise user_error(
            checkpoint.folder,
            f"is not converted to {output} by llama.cpp: {last}",
            "Run with --verbose for all it says",
        )
