"""Large tensors, a piece at a time: the same bytes, and no more in memory than a piece."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from bitplan.core.errors import UserError
from bitplan.evaluate import scores
from bitplan.models import finite
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.reference.head import Head
from bitplan.reference.reference import Reference
from bitplan.runtimes.gguf import tensor_data
from bitplan.runtimes.gguf.convert import convert, converter_folder
from bitplan.runtimes.gguf.file import plan_tensors, read_gguf, rewrite
from bitplan.runtimes.gguf.options import TensorContents


@pytest.fixture(scope="module")
def wide(tmp_path_factory, demo):
    """A bfloat16 Llama whose matrices are over a piece of the converter's."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1536, hidden_size=1024, intermediate_size=1280, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo / "model").save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((demo / "model" / "tokenizer.model").read_bytes())
    return Checkpoint.open(folder)


@pytest.mark.parametrize("kind", ["bf16", "f32"])
def test_the_converters_own_bytes_come_out_of_pieces(wide, tmp_path, kind):
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    convert(wide, ours, kind)
    program = [sys.executable, str(converter_folder() / "convert_hf_to_gguf.py"), str(wide.folder)]
    flags = ["--outfile", str(theirs), "--outtype", kind, "--model-name", wide.folder.name]
    environment = {**os.environ, "PYTHONPATH": str(converter_folder() / "gguf-py"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*program, *flags], check=True, capture_output=True, env=environment)
    actual, expected = GGUFReader(ours), GGUFReader(theirs)
    assert [tensor.name for tensor in actual.tensors] == [tensor.name for tensor in expected.tensors]
    for tensor, other in zip(actual.tensors, expected.tensors, strict=True):
        assert tensor.tensor_type is other.tensor_type and tensor.data.tobytes() == other.data.tobytes(), tensor.name
    fields = {key: field.contents() for key, field in actual.fields.items() if not key.startswith("GGUF.")}
    # What the original tokenizer does is written out; the rest is the converter's.
    added = {key for key in fields if key not in expected.fields}
    assert added <= {f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token", "space_prefix")}
    assert {key: fields[key] for key in fields if key not in added} == {
        key: field.contents() for key, field in expected.fields.items() if not key.startswith("GGUF.")
    }


@pytest.fixture(scope="module")
def base(wide, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(wide, path)
    return path


def written(base, info, output, unquantized, plan):
    importance = {layer.name: np.linspace(0.1, 2, layer.shape[1], dtype=np.float32) for layer in info.quantizable}
    rewrite(base, output, plan_tensors(read_gguf(base), info, plan, unquantized), TensorContents(importance), 2)
    return output.read_bytes()


@pytest.mark.parametrize("unquantized", ["f16", "bf16"])
def test_an_exported_file_does_not_depend_on_the_size_of_the_pieces(wide, base, tmp_path, monkeypatch, unquantized):
    info = describe(wide)
    kinds = ("q4_k", "q8_0", "mxfp8", "bf16")
    layers = {layer.name: LayerPlan(kinds[i % len(kinds)]) for i, layer in enumerate(info.quantizable)}
    whole = written(base, info, tmp_path / "whole.gguf", unquantized, Plan(layers))
    monkeypatch.setattr(tensor_data, "VALUES_AT_ONCE", 3 * 1024)
    assert written(base, info, tmp_path / "pieces.gguf", unquantized, Plan(layers)) == whole


def test_a_value_that_is_not_finite_is_found_in_any_piece(monkeypatch):
    monkeypatch.setattr(finite, "VALUES_AT_ONCE", 16)
    values = torch.ones(7, 11)
    finite.check_finite({"w": values}, "here")
    for place in (0, 40, 76):
        broken = values.clone()
        broken.view(-1)[place] = torch.inf
        with pytest.raises(UserError, match="MODEL-NOT-FINITE"):
            finite.check_finite({"w": broken}, "here")


def test_scores_do_not_depend_on_how_many_rows_are_scored_at_once(monkeypatch):
    torch.manual_seed(0)
    head = Head(torch.randn(97, 16, dtype=torch.bfloat16))
    reference = Reference(torch.randint(0, 97, (2, 13)), torch.randn(2, 13, 16), None, "fp32")
    logits_of = scores.hidden_logits(reference.hidden + 0.1 * torch.randn(2, 13, 16), head)
    whole, nll = scores.score(reference, head, logits_of), scores.nll_of(reference.tokens, 97, logits_of)
    monkeypatch.setattr(scores, "SCORED_VALUES_AT_ONCE", 97 * 5)
    parts = scores.score(reference, head, logits_of)
    assert all(
        torch.equal(getattr(whole, field), getattr(parts, field)) for field in ("nll", "reference_nll", "kl", "agree")
    )
    assert torch.equal(scores.nll_of(reference.tokens, 97, logits_of), nll) and torch.allclose(
        nll, whole.nll, atol=1e-6
    )
    monkeypatch.setattr(scores, "LOGIT_VALUES_AT_ONCE", 97 * 3)
    assert torch.allclose(scores.score(reference, head, logits_of).kl, whole.kl, atol=1e-6)


def test_logits_come_from_slices_of_the_vocabulary(monkeypatch):
    from bitplan.reference import head as of_head

    torch.manual_seed(0)
    head, hidden = Head(torch.randn(50, 8), torch.randn(50), 0.5, 20.0), torch.randn(6, 8)
    expected = torch.tanh((hidden @ head.matrix.T + head.bias) * 0.5 / 20) * 20
    monkeypatch.setattr(of_head, "VOCABULARY_SLICE", 16)
    assert torch.allclose(head.logits(hidden), expected, atol=1e-5)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="asks Linux what is resident")
def test_a_mapped_file_is_not_kept_in_memory(base):
    reader = read_gguf(base)
    assert sum(int(tensor.data.sum(dtype=np.int64)) for tensor in reader.tensors if tensor.data.dtype == np.uint8)
    before = resident_of(base)
    tensor_data.release_pages(reader)
    assert resident_of(base) < before / 4
    assert reader.tensors[-1].data.any(), "it is read from the file again"


def resident_of(path) -> int:
    """KiB of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return int(next(line.split()[1] for line in lines[at:] if line.startswith("Rss:")))
