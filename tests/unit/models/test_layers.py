"""Layer lists: categories, protection, fusion groups, parameters counted once, incomplete checkpoints."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.families import category_of, fusion_group_of, kind_of
from bitplan.models.layers import count_parameters, describe, list_layers, model_info


@pytest.mark.parametrize(
    ("layer", "category"),
    {
        "model.layers.0.self_attn.q_proj": "attn_q",
        "model.layers.0.mlp.gate_proj": "mlp_gate",
        "model.layers.3.mlp.gate": "router",
        "model.layers.3.block_sparse_moe.gate": "router",
        "model.layers.3.mlp.experts.7.down_proj": "expert_down",
        "model.layers.3.block_sparse_moe.experts.0.w1": "expert_gate",
        "transformer.h.2.attn.c_attn": "attn_qkv",
        "transformer.h.2.attn.c_proj": "attn_o",
        "transformer.h.2.mlp.c_proj": "mlp_down",
        "model.decoder.layers.1.fc1": "mlp_up",
        "gpt_neox.layers.1.mlp.dense_4h_to_h": "mlp_down",
        "gpt_neox.embed_in": "embedding",
        "lm_head": "lm_head",
        "model.layers.0.something": "other",
    }.items(),
)
def test_a_layer_gets_its_category_from_its_name(layer, category):
    assert category_of(layer) == category


def test_kinds_are_those_of_the_random_method():
    assert [kind_of(c) for c in ("expert_up", "attn_o", "mlp_up", "other")] == ["expert", "attention", "other", "other"]


def test_q_k_v_and_gate_up_of_a_block_are_fused():
    groups = {
        part: fusion_group_of(f"model.layers.10.{part}", category_of(part))
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    }
    assert groups == {
        "self_attn.q_proj": "model.layers.10.qkv",
        "self_attn.v_proj": "model.layers.10.qkv",
        "mlp.up_proj": "model.layers.10.gate_up",
    }
    assert fusion_group_of("model.layers.10.mlp.down_proj", "mlp_down") == ""


def test_gate_and_up_of_a_shared_expert_are_fused_with_each_other_and_not_with_the_experts():
    groups = {
        part: fusion_group_of(f"model.layers.1.mlp.{part}", category_of(part))
        for part in ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj", "experts.3.up_proj")
    }
    shared = "model.layers.1.gate_up"
    assert list(groups.values()) == [shared, shared, "", "model.layers.1.mlp.experts.up_proj"]


def test_layers_stand_in_model_order_with_embedding_first_and_output_last(tiny):
    layers = list_layers(Checkpoint.open(tiny))
    names = [layer.name for layer in layers]
    assert names[0] == "model.embed_tokens" and names[-1] == "lm_head"
    assert [name.rsplit(".", 1)[1] for name in names[1:8]] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert [layer.protected for layer in layers] == [True, *[False] * 14, True]


def test_every_parameter_is_counted_once(tiny, demo):
    from transformers import AutoModelForCausalLM

    for folder in (tiny, demo / "model"):
        module = AutoModelForCausalLM.from_pretrained(folder)
        assert count_parameters(Checkpoint.open(folder)) == sum(p.numel() for p in module.parameters())


def test_a_tied_output_is_listed_and_counted_with_the_embedding(demo):
    output = list_layers(Checkpoint.open(demo / "model"))[-1]
    assert (output.name, output.tied, output.protected) == ("lm_head", True, True)


def test_a_tied_matrix_may_be_stored_as_the_output_only(assets):
    info = describe(Checkpoint.open(assets / "tinystories-656k"))
    assert info.parameters == 656_000 and info.layers[0].name == "model.embed_tokens"


def test_model_json_says_what_the_folder_says(tiny, tmp_path, command):
    command("describe_model.py", "--model", tiny, "--output", tmp_path / "model.json")
    assert model_info(tmp_path / "model.json") == model_info(tiny)


def copy_of(tiny, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    return folder


def test_a_changed_weight_changes_the_fingerprint(tiny, tmp_path):
    folder = copy_of(tiny, tmp_path)
    assert Checkpoint.open(folder).fingerprint() == Checkpoint.open(tiny).fingerprint()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(folder).fingerprint() != Checkpoint.open(tiny).fingerprint()


def test_a_truncated_file_is_named(tiny, tmp_path):
    folder = copy_of(tiny, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="header says"):
        describe(Checkpoint.open(folder))


def test_pickles_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickle.*save_pretrained"):
        Checkpoint.open(tmp_path)


def test_a_sharded_checkpoint_is_read_through_its_index(tiny, tmp_path):
    folder = copy_of(tiny, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe(Checkpoint.open(folder)).layers == describe(Checkpoint.open(tiny)).layers
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-2.safetensors"):
        Checkpoint.open(folder)
