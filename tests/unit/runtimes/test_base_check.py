"""A GGUF that computes another model is refused as its stand-in, and no score that is not finite passes."""

import json
import shutil

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from bitplan.core.errors import UserError
from bitplan.evaluate.scores import TokenScores, summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.runtimes.gguf.base_check import base_checker, is_base, known_differences
from bitplan.runtimes.gguf.convert import convert
from tests.tokenizer_kinds import KINDS, model_with

DYNAMIC = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}
# A family whose GGUF lacks what the settings ask for: {case: (settings, the reason in the message)}.
OTHER_MODELS = {
    "dynamic rope": (
        {"max_position_embeddings": 32, "rope_parameters": DYNAMIC},
        "llama.cpp has no rotary embedding of type 'dynamic'",
    ),
    "activation": ({"hidden_act": "gelu"}, "llama.cpp computes SiLU where config.json says hidden_act 'gelu'"),
}


def model_of(folder, family="llama", **settings):
    """A tiny random model of a family with a byte-level tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    KINDS["gpt2"](folder, False)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"vocab_size": 640, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    more = {"num_key_value_heads": 2, "initializer_range": 0.15, "max_position_embeddings": 512}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**sizes, **special, **more, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_file_that_computes_another_model_is_refused_with_the_reason(case, tmp_path, command):
    settings, reason = OTHER_MODELS[case]
    folder, output = model_of(tmp_path / "model", **settings), tmp_path / "base.gguf"
    made = command("convert_gguf.py", "--model", folder, "--output", output, ok=False)
    assert made.returncode == 2 and "Traceback" not in made.stderr
    assert "[GGUF-BASE-DIFFERS]" in made.stderr and reason in made.stderr
    assert "--allow-base-kl" in made.stderr and not output.exists()


def test_a_sliding_window_that_the_file_lacks_is_the_reason(tmp_path):
    checkpoint = Checkpoint.open(model_of(tmp_path / "model", "mistral", sliding_window=32))
    with pytest.raises(UserError, match="the file does not hold sliding_window 32"):
        convert(checkpoint, tmp_path / "base.gguf", check=base_checker(checkpoint, 1, 1e-3))
    assert not (tmp_path / "base.gguf").exists()


def test_a_difference_is_accepted_when_it_is_allowed_and_scored_only_then(tmp_path, command, demo):
    folder, output = model_of(tmp_path / "model", "mistral", sliding_window=32), tmp_path / "base.gguf"
    command("convert_gguf.py", "--model", folder, "--output", output, "--allow-base-kl", 2)
    score = ("perplexity.py", "--model", folder, "--gguf", output, "--text", demo / "evaluation.txt")
    score = (*score, "--length", 128, "--sequences", 2, "--output", tmp_path / "p.json")
    refused = command(*score, ok=False)
    assert refused.returncode == 2 and "sliding_window 32" in refused.stderr and not (tmp_path / "p.json").exists()
    command(*score, "--allow-base-kl")
    assert json.loads((tmp_path / "p.json").read_text())["kl_mean"] > 1e-3


def test_a_plan_is_not_exported_by_way_of_another_model(tmp_path, command):
    folder = model_of(tmp_path / "model", "mistral", sliding_window=32)
    (tmp_path / "plan.json").write_text('{"default": {"wq": "q8_0"}}')
    words = ("--plan", tmp_path / "plan.json", "--output", tmp_path / "o.gguf", "--report", tmp_path / "o.json")
    made = command("export_gguf.py", "--model", folder, *words, ok=False)
    assert made.returncode == 2 and "sliding_window 32" in made.stderr and not (tmp_path / "o.gguf").exists()


def test_a_window_that_is_switched_off_or_longer_than_the_text_is_no_difference(tmp_path):
    folder = model_of(tmp_path / "off", "qwen2", sliding_window=32, use_sliding_window=False)
    checkpoint = Checkpoint.open(folder)
    convert(checkpoint, tmp_path / "off.gguf", check=base_checker(checkpoint, 1, 1e-3))
    assert list(known_differences(checkpoint.config, GGUFReader(tmp_path / "off.gguf"))) == []
    checkpoint = Checkpoint.open(model_of(tmp_path / "long", "mistral", sliding_window=4096))
    convert(checkpoint, tmp_path / "long.gguf", check=base_checker(checkpoint, 1, 1e-3))
    assert is_base(GGUFReader(tmp_path / "long.gguf"))


@pytest.fixture(scope="module")
def overflowing(demo, tmp_path_factory):
    """The bundled model in float16 with activations beyond 65504 in its second block."""
    folder = tmp_path_factory.mktemp("overflow") / "model"
    shutil.copytree(demo / "model", folder)
    held = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    up, down = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down"))
    held[up], held[down] = (held[up].float() * 3000).half(), (held[down].float() / 3000).half()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    return folder


def test_activations_that_f16_cannot_hold_are_an_error_that_offers_bf16(overflowing, tmp_path, command):
    output = tmp_path / "base.gguf"
    made = command("convert_gguf.py", "--model", overflowing, "--output", output, ok=False)
    assert made.returncode == 2 and not output.exists()
    assert "NaN or Inf logits" in made.stderr and "--type bf16" in made.stderr
    command("convert_gguf.py", "--model", overflowing, "--type", "bf16", "--output", output)


def test_scoring_such_a_file_is_an_error(overflowing, tmp_path, command, demo):
    command("convert_gguf.py", "--model", overflowing, "--no-check", "--output", tmp_path / "b.gguf")
    words = ("--model", overflowing, "--gguf", tmp_path / "b.gguf", "--text", demo / "evaluation.txt")
    output = tmp_path / "p.json"
    made = command("perplexity.py", *words, "--length", 64, "--sequences", 2, "--output", output, ok=False)
    assert made.returncode == 2 and "bf16" in made.stderr and not output.exists()


def test_weights_that_f16_cannot_hold_are_not_converted_to_it(tmp_path, tiny):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    held = load_file(folder / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][3, 5] = 70_000.0
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="GGUF-HALF-OVERFLOW.*up_proj.weight"):
        convert(Checkpoint.open(folder), tmp_path / "base.gguf", "f16")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["nll", "kl", "reference_nll"])
def test_figures_that_are_not_finite_are_refused(field, wrong):
    values = {name: torch.ones(2, 3) for name in ("nll", "reference_nll", "kl", "agree")}
    values[field][1, 1] = wrong
    with pytest.raises(UserError, match="SCORES-NOT-FINITE"):
        summarize(TokenScores(**values))


def test_the_names_of_a_model_are_those_asked_for(tmp_path):
    folder = model_with(tmp_path / "checkpoint", lambda folder: KINDS["qwen2"](folder, False))
    convert(Checkpoint.open(folder), tmp_path / "b.gguf", name="my model")
    assert GGUFReader(tmp_path / "b.gguf").fields["general.name"].contents() == "my model"
