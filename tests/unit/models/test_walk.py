"""The walk: the same numbers as a plain forward, plans applied as blocks are loaded, nothing quantized twice."""

import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_nll, score_plan
from bitplan.evaluate.scores import summarize
from bitplan.formats.table import FORMATS
from bitplan.models import walk
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import TOKENS_PER_BATCH, Block, open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.reference import head as head_module
from bitplan.reference.head import StoredHead
from bitplan.reference.head_check import check_head
from bitplan.reference.reference import load_reference, make_reference, reference_of_tokens, save_reference
from tests.checkpoints import change


@pytest.fixture(scope="module")
def opened(tiny):
    checkpoint = Checkpoint.open(tiny)
    return checkpoint, describe(checkpoint), open_model(checkpoint)


@pytest.fixture(scope="module")
def reference(opened, demo):
    return make_reference(opened[2], demo / "evaluation.txt", 64, 9, "fp32")


def plain_nll(module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits = module(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


def test_the_walk_gives_the_nll_of_a_plain_forward(opened, reference, tiny):
    _, info, model = opened
    module = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ours = plan_nll(model, info, uniform_plan(info, "bf16"), reference, QuantizedWeights())
    assert ours.mean().item() == pytest.approx(plain_nll(module, reference.tokens).mean().item(), rel=1e-5)


def test_the_bundled_model_gives_the_nll_of_a_plain_forward(demo):
    checkpoint = Checkpoint.open(demo / "model")
    info, model = describe(checkpoint), open_model(checkpoint)
    reference = make_reference(model, demo / "evaluation.txt", 256, 8, "fp32")
    module = AutoModelForCausalLM.from_pretrained(demo / "model", dtype=torch.float32)
    ours = plan_nll(model, info, uniform_plan(info, "bf16"), reference, QuantizedWeights())
    assert ours.mean().item() == pytest.approx(plain_nll(module, reference.tokens).mean().item(), rel=1e-5)


def test_a_quantized_walk_gives_the_nll_of_a_model_quantized_by_hand(opened, reference, tiny):
    _, info, model = opened
    module = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    hooks = []
    for layer in info.quantizable:
        part = module.get_submodule(layer.name)
        part.weight.data = FORMATS["mxfp4"].roundtrip(part.weight.data)
        hooks.append(part.register_forward_pre_hook(lambda m, args: (FORMATS["mxfp8"].roundtrip(args[0]),)))
    ours = plan_nll(model, info, uniform_plan(info, "mxfp4", "mxfp8"), reference, QuantizedWeights())
    assert torch.allclose(ours, plain_nll(module, reference.tokens), rtol=1e-4, atol=1e-5)


def test_a_plan_changes_only_the_layers_that_it_names(opened, reference):
    _, info, model = opened
    seen = {}

    def visit(block: Block, hidden, forward):
        from bitplan.plans.apply import quantize_weights_

        before = {name: part.weight.clone() for name, part in block.layers.items()}
        quantize_weights_(block, plan, {layer.name: layer for layer in info.layers}, QuantizedWeights())
        seen.update({name: not torch.equal(part.weight, before[name]) for name, part in block.layers.items()})
        return forward(hidden)

    one = "model.layers.1.mlp.up_proj"
    plan = Plan({one: LayerPlan("mxfp4")})
    model.run(reference.tokens, visit)
    assert {name for name, changed in seen.items() if changed} == {one} and len(seen) == 14


def test_the_same_model_runs_plain_again_after_a_plan(opened, reference):
    _, info, model = opened
    first = plan_nll(model, info, uniform_plan(info, "bf16"), reference, QuantizedWeights())
    plan_nll(model, info, uniform_plan(info, "mxfp4", "mxfp4"), reference, QuantizedWeights())
    assert torch.equal(first, plan_nll(model, info, uniform_plan(info, "bf16"), reference, QuantizedWeights()))


def test_a_second_plan_quantizes_only_what_the_first_one_did_not(opened, reference):
    _, info, model = opened
    weights = QuantizedWeights()
    score_plan(model, info, uniform_plan(info, "mxfp4"), reference, weights)
    assert weights.quantizations == 14
    mixed = Plan({**uniform_plan(info, "mxfp4").layers, "model.layers.0.mlp.up_proj": LayerPlan("mxfp8")})
    score_plan(model, info, mixed, reference, weights)
    assert weights.quantizations == 15


def test_a_store_that_is_too_small_for_all_still_spares_what_it_holds(opened, reference):
    _, info, model = opened
    plan, some = uniform_plan(info, "mxfp8"), QuantizedWeights()
    plan_nll(model, info, plan, reference, some)
    half = QuantizedWeights(limit=some._used // 2)
    for _ in range(2):
        plan_nll(model, info, plan, reference, half)
    assert 14 < half.quantizations < 28 and half._used <= half.limit


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "int4", "q8_0"])
def test_a_kept_weight_is_the_weight_that_was_quantized(name):
    from bitplan.plans.apply import LayerPlan as Made

    weight, weights = torch.randn(8, 256), QuantizedWeights()
    expected = FORMATS[name].roundtrip(weight)
    assert (
        all(torch.equal(weights.get("l", weight, Made(name)), expected) for _ in range(2))
        and weights.quantizations == 1
    )


def test_quantized_weights_over_the_limit_are_not_kept_and_the_result_is_the_same(opened, reference):
    _, info, model = opened
    plan = uniform_plan(info, "int4")
    some, none = QuantizedWeights(), QuantizedWeights(limit=0)
    assert torch.equal(plan_nll(model, info, plan, reference, some), plan_nll(model, info, plan, reference, none))
    plan_nll(model, info, plan, reference, none)
    assert none.quantizations == 28 and some.quantizations == 14


def test_only_one_block_has_weights_at_a_time(opened, reference):
    _, _, model = opened
    loaded = []

    def visit(block, hidden, forward):
        loaded.append([i for i, part in enumerate(model.blocks) if not next(part.parameters()).is_meta])
        return forward(hidden)

    model.run(reference.tokens, visit)
    assert loaded == [[0], [1]] and all(p.is_meta for part in model.blocks for p in part.parameters())


def test_large_blocks_return_their_memory_one_by_one_and_small_ones_when_the_walk_ends(opened, reference, monkeypatch):
    _, _, model = opened
    calls = []
    monkeypatch.setattr(walk, "return_free_memory", lambda: calls.append(1))
    for limit, expected in ((walk.RETURNED_BYTES, 1), (1, 3)):
        monkeypatch.setattr(walk, "RETURNED_BYTES", limit)
        calls.clear()
        model.run(reference.tokens)
        assert len(calls) == expected


def test_a_damaged_block_is_named_when_its_turn_comes(tiny, reference, tmp_path):
    folder, visited = shutil.copytree(tiny, tmp_path / "model"), []
    broken = "model.layers.1.mlp.up_proj.weight"
    change(folder, lambda held: held | {broken: held[broken].fill_(math.nan)})
    with pytest.raises(UserError, match=rf"MODEL-NOT-FINITE.*{re.escape(broken)}"):
        open_model(Checkpoint.open(folder)).run(
            reference.tokens, lambda block, hidden, forward: visited.append(block.index) or forward(hidden)
        )
    assert visited == [0]


def test_a_padding_token_outside_the_text_does_not_disturb(tiny, reference, tmp_path):
    import json

    shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"pad_token_id": 2000}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert open_model(Checkpoint.open(tmp_path / "m")).run(reference.tokens).isfinite().all()


@pytest.mark.parametrize("family", ["phi", "granite", "cohere", "gemma2", "opt", "gpt2"])
def test_heads_with_bias_scale_or_soft_cap_give_the_nll_of_a_plain_forward(family, tmp_path):
    config = AutoConfig.for_model(family, **SMALL.get(family, SMALL["llama"]))
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    module.save_pretrained(tmp_path)
    tokens = torch.randint(3, 256, (3, 32), generator=torch.Generator().manual_seed(1))
    checkpoint = Checkpoint.open(tmp_path)
    model = open_model(checkpoint)
    walked = reference_of_tokens(checkpoint, tokens, model.run(tokens), "fp32")
    head = walked.head.read()
    with torch.inference_mode():
        expected = module(input_ids=tokens).logits[:, :-1]
    ours = torch.stack([head.logits(hidden[:-1]) for hidden in walked.hidden])
    assert torch.allclose(ours, expected.float(), rtol=1e-4, atol=1e-4)


SMALL = {
    "llama": {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    },
    "opt": {
        "vocab_size": 256,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    },
    "gpt2": {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def test_a_family_with_a_head_of_its_own_is_refused_and_not_scored_wrongly(tmp_path, monkeypatch):
    config = AutoConfig.for_model("cohere", **SMALL["llama"])
    module = AutoModelForCausalLM.from_config(config)
    module.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    model = open_model(checkpoint)
    hidden = model.run(torch.arange(3, 35).view(2, 16))
    head = StoredHead.of(checkpoint)
    check_head(model, head, hidden)
    monkeypatch.setattr(head_module, "SCALES", {})
    with pytest.raises(UserError, match="MODEL-UNKNOWN-HEAD"):
        check_head(model, head, hidden)
    assert model.run(torch.arange(3, 35).view(2, 16)).equal(hidden)


def test_the_output_matrix_is_read_when_the_walk_has_ended_onto_its_device(opened, reference, monkeypatch):
    _, info, model = opened
    read, read_rows, read_head, order = Checkpoint.read, Checkpoint.read_rows, StoredHead.read, []
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, names, *how: order.extend(names) or read(self, order[-len(names) :], *how)
    )
    monkeypatch.setattr(
        Checkpoint, "read_rows", lambda self, name, rows: order.append(name) or read_rows(self, name, rows)
    )
    monkeypatch.setattr(StoredHead, "read", lambda self, device="cpu": order.append(device) or read_head(self, device))
    score_plan(model, info, uniform_plan(info, "int4"), reference, QuantizedWeights())
    assert order[-2:] == [model.device, reference.head.name]
    assert any(name.startswith("model.layers.1.") for name in order) and order.count(reference.head.name) == 1


def test_the_output_matrix_is_read_in_parts_as_it_is_stored(opened, tiny, monkeypatch):
    stored = load_file(tiny / "model.safetensors")["lm_head.weight"]
    monkeypatch.setattr(head_module, "VALUES_AT_ONCE", 7 * stored.shape[1] + 3)
    head = StoredHead.of(opened[0])
    matrix = head.read().matrix
    assert torch.equal(matrix, stored) and matrix.dtype == stored.dtype and head.vocabulary == len(stored)


def test_nan_in_the_output_matrix_is_refused_before_a_block_is_loaded(tiny, demo, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    change(folder, lambda held: held | {"lm_head.weight": held["lm_head.weight"].fill_(math.nan)})
    model = open_model(Checkpoint.open(folder))
    with pytest.raises(UserError, match=r"MODEL-NOT-FINITE.*lm_head\.weight"):
        make_reference(model, demo / "evaluation.txt", 64, 2, "fp32")
    assert model.block_forwards == 0


def test_batches_do_not_change_the_result(opened, reference):
    _, _, model = opened
    whole = model.run(reference.tokens)
    model.tokens_per_batch = 64
    try:
        assert torch.allclose(whole, model.run(reference.tokens), atol=1e-5)
    finally:
        model.tokens_per_batch = TOKENS_PER_BATCH


def test_kl_of_the_model_with_itself_is_zero_and_of_a_plan_is_positive(opened, reference):
    _, info, model = opened
    same = summarize(score_plan(model, info, uniform_plan(info, "bf16"), reference, QuantizedWeights()))
    other = summarize(score_plan(model, info, uniform_plan(info, "int3"), reference, QuantizedWeights()))
    assert abs(same["kl_mean"]) < 1e-9 and same["top1_agreement"] == 1 and same["ln_ppl_ratio"] == 0
    assert other["kl_mean"] > 1e-4 and other["tokens"] == 9 * 63


def test_scores_follow_their_formulas(opened, reference):
    _, info, model = opened
    scores = score_plan(model, info, uniform_plan(info, "int3"), reference, QuantizedWeights())
    figures = summarize(scores)
    by_window = scores.nll.double().mean(1)
    assert figures["ppl"] == pytest.approx(math.exp(scores.nll.double().mean().item()))
    assert figures["nll_error"] == pytest.approx((by_window.std() / math.sqrt(9)).item())
    paired = (scores.nll - scores.reference_nll).double().mean(1)
    assert figures["ln_ppl_ratio_error"] == pytest.approx((paired.std() / 3).item())


def test_a_saved_reference_is_the_reference_and_belongs_to_its_model_and_dtype(opened, reference, demo, tmp_path):
    checkpoint, info, _ = opened
    path = tmp_path / "evaluation.safetensors"
    save_reference(path, reference, info.fingerprint, demo / "evaluation.txt")
    again = load_reference(path, checkpoint, info.fingerprint, "fp32")
    assert torch.equal(again.tokens, reference.tokens) and torch.equal(again.hidden, reference.hidden)
    first = path.read_bytes()
    save_reference(path, reference, info.fingerprint, demo / "evaluation.txt")
    assert path.read_bytes() == first
    with pytest.raises(UserError, match="REFERENCE-OTHER-MODEL"):
        load_reference(path, checkpoint, "x")
    with pytest.raises(UserError, match="REFERENCE-OTHER-DTYPE"):
        load_reference(path, checkpoint, info.fingerprint, "bf16")


def test_the_shared_model_has_its_known_perplexities(assets):
    checkpoint = Checkpoint.open(assets / "tinystories-656k")
    info, model = describe(checkpoint), open_model(checkpoint)
    reference = make_reference(model, assets / "tinystories-text" / "stories.txt", 512, None, "fp32")
    weights = QuantizedWeights()
    known = {("bf16", "bf16"): 1.0, ("mxfp4", "bf16"): 1.12, ("mxfp8", "mxfp8"): 1.02, ("mxfp4", "mxfp4"): 1.34}
    for (wq, aq), rise in known.items():
        figures = summarize(score_plan(model, info, uniform_plan(info, wq, aq), reference, weights))
        assert figures["base_ppl"] == pytest.approx(38.881, abs=0.001)
        assert figures["ppl"] / figures["base_ppl"] == pytest.approx(rise, abs=0.006)
        assert figures["tokens"] == 118_552
