"""A plan as a checkpoint: the values of its formats, in files that transformers loads, scoring as the plan does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_nll
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.reference.reference import make_reference
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from tests.families import TEXT, make_family


def plain_nll(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = module(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2"])
@pytest.mark.parametrize("wq", ["mxfp4", "int4", "q8_0"])
def test_transformers_gives_the_written_checkpoint_the_nll_of_the_plan(family, wq, tmp_path):
    folder = make_family(family, tmp_path / "model")
    checkpoint = Checkpoint.open(folder)
    info, model = describe(checkpoint), open_model(checkpoint)
    made = make_reference(model, TEXT, 32, 4, "fp32")
    plan = uniform_plan(info, wq)
    wanted = plan_nll(model, info, plan, made, QuantizedWeights()).double().mean().item()
    write_checkpoint(tmp_path / "out", checkpoint, info, plan, QuantizedWeights(limit=0))
    assert plain_nll(tmp_path / "out", made.tokens).double().mean().item() == pytest.approx(wanted, abs=1e-6)
    assert describe(Checkpoint.open(tmp_path / "out")).layers == info.layers


@pytest.fixture(scope="module")
def bundled(demo):
    checkpoint = Checkpoint.open(demo / "model")
    return checkpoint, describe(checkpoint)


def test_the_bundled_models_checkpoint_scores_as_the_plan(bundled, demo, tmp_path):
    checkpoint, info = bundled
    model = open_model(checkpoint)
    made = make_reference(model, demo / "evaluation.txt", 128, 4, "fp32")
    plan = Plan({layer.name: LayerPlan(("mxfp4", "mxfp8", "int3")[i % 3]) for i, layer in enumerate(info.quantizable)})
    wanted = plan_nll(model, info, plan, made, QuantizedWeights()).double().mean().item()
    write_checkpoint(tmp_path / "out", checkpoint, info, plan, QuantizedWeights(limit=0))
    assert plain_nll(tmp_path / "out", made.tokens).double().mean().item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("wq", "dtype"), [("mxfp4", "BF16"), ("mxfp8_e5m2", "BF16"), ("int4", "F32"), ("q4_k", "F32")])
def test_a_bfloat16_checkpoint_keeps_its_size_where_bfloat16_holds_the_values(bundled, wq, dtype, tmp_path):
    checkpoint, info = bundled
    layer = info.quantizable[3]
    plan = Plan({layer.name: LayerPlan(wq)})
    write_checkpoint(tmp_path / "out", checkpoint, info, plan, QuantizedWeights(limit=0))
    name = f"{layer.name}.weight"
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as handle:
        assert handle.get_slice(name).get_dtype() == dtype
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == ("bfloat16" if dtype == "BF16" else "float32")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint.folder, tmp_path / "out"))
    assert torch.equal(after[name].float(), FORMATS[wq].roundtrip(before[name].float()))
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)


def test_shards_keep_their_names_and_the_index_its_entries(tmp_path):
    source = make_family("llama", tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "model", max_shard_size="400KB")
    (source / "model.safetensors").unlink()
    checkpoint = Checkpoint.open(source)
    info = describe(checkpoint)
    write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp4"), QuantizedWeights(limit=0))
    before, after = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (source, tmp_path / "out")
    )
    assert len(set(before["weight_map"].values())) > 1 and before["weight_map"] == after["weight_map"]
    stored = sum(t.nbytes for t in Checkpoint.open(tmp_path / "out").tensors.values())
    assert after["metadata"]["total_size"] == stored


def test_a_folder_that_holds_something_is_left_alone(bundled, tmp_path):
    checkpoint, info = bundled
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp4"), QuantizedWeights(limit=0))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_error_half_way_leaves_no_folder(bundled, tmp_path):
    checkpoint, info = bundled

    class Broken(QuantizedWeights):
        def get(self, layer, weight, made, smoothing=None):
            if layer == info.quantizable[5].name:
                raise OSError(28, "No space left on device")
            return super().get(layer, weight, made, smoothing)

    with pytest.raises(OSError):
        write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp4"), Broken(limit=0))
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_plan_and_writes_only_what_is_asked_for(command, tiny, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"overrides": [{"pattern": "*.mlp.*", "wq": "mxfp4", "aq": "mxfp8"}]}))
    arguments = ("--model", tiny, "--layer-config", config)
    made = command("quantize_model.py", *arguments, "--save-plan", tmp_path / "p.json", "--dry-run")
    assert "model.layers.1.mlp.down_proj" in made.stdout and "avg_bits" in made.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    made = command("quantize_model.py", *arguments, "--save-plan", tmp_path / "p.json", "--output", tmp_path / "out")
    assert "6 weights changed" in made.stdout and "holds no activation formats" in made.stdout
    assert len(json.loads((tmp_path / "p.json").read_text())["overrides"]) == 16
    assert (tmp_path / "out/tokenizer.json").exists() and (tmp_path / "out/bitplan/plan.json").exists()
