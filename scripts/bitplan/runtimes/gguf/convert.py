"""The full-precision GGUF of a model, by llama.cpp's own converter."""

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import folder_aside, written_aside
from bitplan.models.checkpoint import FLOATS, Checkpoint
from bitplan.models.checkpoint_files import INDEX
from bitplan.models.layers import output_tensor_name
from bitplan.models.walk import check_finite
from bitplan.runtimes.gguf import run_converter

log = logging.getLogger(__name__)
PRE_TOKENIZERS = {"gpt2": "gpt-2", "opt": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
DEFAULT_PRE_TOKENIZER = "llama-bpe"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
GUESSED = "unknown pre-tokenizer"
# What the converter reads from config.json and transformers 5 does not write: {model type: {key: where its value stands}}.
OLD_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"n_ctx": ("n_positions",)},
    "gpt_neox": {"rotary_pct": ("rope_parameters", "partial_rotary_factor")},
}
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


def _embedding_missing(checkpoint: Checkpoint) -> bool:
    """Return whether a tied matrix is stored as the output only, which transformers reads and llama.cpp does not."""
    return checkpoint.tied and output_tensor_name(checkpoint) == OUTPUT


def _renamed(source: Path, target: Path) -> None:
    """Copy a safetensors file, its output matrix called the embedding."""
    with open(source, "rb") as read, open(target, "wb") as write:
        header = json.loads(read.read(struct.unpack("<Q", read.read(8))[0]))
        named = json.dumps({EMBEDDING if key == OUTPUT else key: value for key, value in header.items()}).encode()
        write.write(struct.pack("<Q", len(named)) + named)
        shutil.copyfileobj(read, write, 1 << 24)


def _old_keys(config: dict) -> dict:
    """Return the keys that the converter looks for in vain in a configuration, with their values."""
    found = {}
    for key, path in OLD_KEYS.get(config.get("model_type", ""), {}).items():
        newer = reduce(lambda held, part: held.get(part) if isinstance(held, dict) else None, path, config)
        value = config.get(key, newer)
        if value is not None:
            found[key] = value
    return found


def _replace_output_(stand_in: Path, checkpoint: Checkpoint) -> None:
    """Put in place of the file with the output matrix a copy in which it is called the embedding."""
    stored = checkpoint.tensors[OUTPUT].file
    (stand_in / stored.name).unlink()
    _renamed(stored, stand_in / stored.name)
    index = stand_in / INDEX
    if index.exists():
        text = index.read_text(encoding="utf-8").replace(f'"{OUTPUT}"', f'"{EMBEDDING}"')
        index.unlink()
        index.write_text(text, encoding="utf-8")


@contextmanager
def _readable_by_converter(checkpoint: Checkpoint, beside: Path) -> Iterator[Path]:
    """Yield the checkpoint's folder, or a stand-in for the time of the block where a tensor needs another name."""
    if not _embedding_missing(checkpoint):
        yield checkpoint.folder
        return
    with folder_aside(beside) as folder:
        stand_in = folder / checkpoint.folder.resolve().name
        stand_in.mkdir()
        for file in checkpoint.folder.iterdir():
            (stand_in / file.name).symlink_to(file.resolve())
        _replace_output_(stand_in, checkpoint)
        yield stand_in


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raise `UserError` when a tensor holds NaN or infinity, which the converter would write as it is."""
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOATS:
            check_finite(checkpoint.read([name]), checkpoint.folder)


def convert(checkpoint: Checkpoint, output: Path, out_type: str | None = None) -> None:
    """Write the checkpoint as GGUF in its own precision, or in `out_type`. Raises `UserError` with the converter's last words."""
    folder = converter_folder()
    _check_weights(checkpoint)
    name = PRE_TOKENIZERS.get(checkpoint.config.get("model_type", ""), DEFAULT_PRE_TOKENIZER)
    with written_aside(output) as aside, _readable_by_converter(checkpoint, aside.parent) as source:
        keys = json.dumps(_old_keys(checkpoint.config))
        command = [sys.executable, run_converter.__file__, str(folder), name, keys, str(source)]
        wanted = ["--outfile", str(aside), "--outtype", out_type or exact_type(checkpoint)]
        _run([*command, *wanted, "--model-name", source.resolve().name], checkpoint, output)


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
