"""Latent attention (DeepSeek V2): both of llama.cpp's tensors for one matrix have the plan's format and score as simulated."""

import numpy as np
import pytest
from gguf import GGUFReader

from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.recipe_importance import importance_by_tensor
from bitplan.runtimes.gguf.recipes import quantize_by_recipe
from bitplan.runtimes.gguf.scores import score_gguf
from tests.families import TEXT
from tests.unit.runtimes.test_base_check import model_of

RANKS = {"kv_lora_rank": 32, "q_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 32}
PARTS = ("attn_k_b.weight", "attn_v_b.weight")


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepseek") / "model"
    checkpoint = Checkpoint.open(model_of(folder, "deepseek_v2", **RANKS, **EXPERTS, **GROUPS))
    convert(checkpoint, folder / "base.gguf")
    return checkpoint, describe(checkpoint), folder / "base.gguf"


def test_the_file_scores_as_the_simulation(deepseek, tmp_path):
    checkpoint, info, base = deepseek
    model, plan = open_model(checkpoint), uniform_plan(info, "q8_0")
    reference = make_reference(model, TEXT, 64, 2, "fp32")
    assert summarize(score_gguf(base, reference, 1))["kl_mean"] < 1e-5
    report = export_plan(base, tmp_path / "o.gguf", info, plan, "f16", {}, 1)
    parts = [record for record in report["tensors"] if record["tensor"].endswith(PARTS)]
    assert len(parts) == 4 and {record["written"] for record in parts} == {"Q8_0"}
    assert {record["layer"] for record in parts} == {f"model.layers.{i}.self_attn.kv_b_proj" for i in (0, 1)}
    simulated = summarize(score_plan(model, info, plan, reference, QuantizedWeights()))["kl_mean"]
    assert summarize(score_gguf(tmp_path / "o.gguf", reference, 1))["kl_mean"] < 10 * simulated + 1e-3


def test_heads_share_the_importance_of_their_inputs_and_llama_cpp_takes_it(deepseek, tmp_path):
    _, info, base = deepseek
    columns = {layer.name: np.arange(1, layer.shape[1] + 1, dtype=np.float32) for layer in info.quantizable}
    importance = importance_by_tensor(base, info, columns)
    assert np.array_equal(importance["blk.0.attn_v_b.weight"], np.tile(np.arange(1, 33), 4))
    assert "blk.0.attn_k_b.weight" not in importance
    quantize_by_recipe(base, tmp_path / "theirs.gguf", "q4_0", 1, importance=importance)
    export_plan(base, tmp_path / "ours.gguf", info, uniform_plan(info, "q4_0"), "f16", columns, 1)
    stored = [
        {tensor.name: tensor for tensor in GGUFReader(tmp_path / name).tensors} for name in ("ours.gguf", "theirs.gguf")
    ]
    for part in ("blk.0.attn_v_b.weight", "blk.1.attn_v_b.weight"):
        ours, theirs = (each[part] for each in stored)
        assert ours.tensor_type is theirs.tensor_type and np.array_equal(ours.data, theirs.data)
