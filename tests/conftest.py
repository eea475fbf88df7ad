"""Shared fixtures: a tiny real Llama made on the spot, its text, and the folders of shared assets where they exist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers run side by side: more threads than cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
warm.use_()
ASSETS = ROOT.parent / "shared" / "assets"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled model's folder."""
    return ROOT / "demo"


@pytest.fixture(scope="session")
def assets() -> Path:
    """Models and texts that are not part of the project; tests that need them skip elsewhere."""
    if not ASSETS.is_dir():
        pytest.skip("the shared assets are not here")
    return ASSETS


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, demo) -> Path:
    """A random two-block Llama of hidden size 64 with the bundled tokenizer, saved as a checkpoint."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo / "model" / name, folder / name)
    return folder


@pytest.fixture
def command():
    """A function that runs a command of scripts/ as a person would, and returns the finished process."""

    def run(name: str, *arguments: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
        made = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
        assert (made.returncode == 0) is ok, made.stderr[-2000:]
        return made

    return run
