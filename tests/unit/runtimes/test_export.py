"""GGUF: the base file scores as transformers does, mixed files are llama.cpp's own bytes, the report is the file."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from bitplan.core.errors import UserError
from bitplan.demo.stories import text_of
from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert, exact_type
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.file import check_written, plan_tensors, rewrite
from bitplan.runtimes.gguf.llama_runtime import opened
from bitplan.runtimes.gguf.recipe_importance import importance_by_tensor
from bitplan.runtimes.gguf.recipes import quantize_by_recipe
from bitplan.runtimes.gguf.scores import score_gguf
from tests.families import make_family

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "gguf_mxfp4")


@pytest.fixture(scope="module")
def model(demo):
    checkpoint = Checkpoint.open(demo / "model")
    return checkpoint, describe(checkpoint)


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(model[0], path)
    return path


@pytest.fixture(scope="module")
def reference(model, demo):
    return make_reference(open_model(model[0]), demo / "evaluation.txt", 256, 8, "fp32")


@pytest.fixture(scope="module")
def mixed(model) -> Plan:
    """Every type in turn over the layers."""
    layers = model[1].quantizable
    return Plan({layer.name: LayerPlan(TYPES[i % len(TYPES)]) for i, layer in enumerate(layers)})


@pytest.fixture(scope="module")
def mixed_file(model, base, mixed, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    return path, export_plan(base, path, model[1], mixed, "bf16", {}, 2)


def test_the_base_file_holds_the_checkpoint_exactly(model, base):
    assert exact_type(model[0]) == "bf16"
    assert {t.tensor_type.name for t in GGUFReader(base).tensors} == {"BF16", "F32"}


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_full_precision_file_scores_as_the_walk_does(model, reference, tmp_path, kind):
    path = tmp_path / "full.gguf"
    convert(model[0], path, kind)
    figures = summarize(score_gguf(path, reference, 1))
    assert figures["kl_mean"] < 1e-6 and figures["ppl"] == pytest.approx(figures["base_ppl"], rel=1e-4)


def test_a_mixed_file_is_byte_for_byte_what_llama_cpp_makes(model, base, mixed, mixed_file, tmp_path):
    path, report = mixed_file
    wanted = {
        f"^{record['tensor'].replace('.', chr(92) + '.')}$": record["written"]
        for record in report["tensors"]
        if record["layer"]
    }
    theirs = tmp_path / "llama.gguf"
    quantize_by_recipe(base, theirs, "q8_0", 2, wanted)
    ours = {t.name: (t.tensor_type, t.data) for t in GGUFReader(path).tensors}
    for tensor in GGUFReader(theirs).tensors:
        assert ours[tensor.name][0] is tensor.tensor_type, tensor.name
        assert np.array_equal(ours[tensor.name][1], tensor.data), tensor.name
    assert len({kind for kind, _ in ours.values()}) == len(TYPES) + 2


def test_the_file_has_the_perplexity_that_the_simulation_saw(model, reference, mixed, mixed_file):
    simulated = summarize(score_plan(open_model(model[0]), model[1], mixed, reference, QuantizedWeights()))
    real = summarize(score_gguf(mixed_file[0], reference, 1))
    # llama.cpp rounds activations to 8 bits inside its products, which the simulation does not.
    assert real["ln_ppl_ratio"] == pytest.approx(simulated["ln_ppl_ratio"], abs=0.01)
    assert real["kl_mean"] == pytest.approx(simulated["kl_mean"], rel=0.2)


def test_the_file_generates_text_of_the_training_language(mixed_file):
    known = set(text_of(1, 300_000).split())
    with opened(mixed_file[0], 128, 1) as runtime:
        tokens, _, _ = runtime.generate(runtime.tokenize("Near the mill lived"), 60)
        words = runtime.text_of(tokens).split()[1:-1]
    assert len(words) > 30 and sum(word in known for word in words) > 0.8 * len(words), words


def test_the_report_gives_types_bytes_and_average_bits_of_the_file(model, mixed_file):
    path, report = mixed_file
    assert report["file_bytes"] == path.stat().st_size
    assert report["avg_bits_file"] == pytest.approx(8 * path.stat().st_size / model[1].parameters)
    held = {t.name: (t.tensor_type.name, t.n_bytes) for t in GGUFReader(path).tensors}
    assert {r["tensor"]: (r["written"], r["bytes"]) for r in report["tensors"]} == held


def test_a_file_that_is_not_the_report_is_refused(model, base, mixed, mixed_file):
    other = plan_tensors(GGUFReader(base), model[1], uniform_plan(model[1], "q8_0"), "bf16")
    with pytest.raises(UserError, match="the report says"):
        check_written(mixed_file[0], other)


def test_the_report_says_why_a_tensor_is_not_what_was_asked_for(model, base):
    plan = uniform_plan(model[1], "mxfp8", "mxfp8")
    records = {record.layer: record for record in plan_tensors(GGUFReader(base), model[1], plan, "f16")}
    one = records["model.layers.0.self_attn.q_proj"]
    assert one.written == "Q8_0"
    assert "mxfp8 is no GGUF type, Q8_0 comes nearest" in one.why and "cannot hold activation format mxfp8" in one.why
    assert records["model.embed_tokens"].written == "F16" and "protected" in records["model.embed_tokens"].why


def test_rows_that_do_not_fit_a_type_fall_back_and_the_report_says_so(tiny, tmp_path):
    checkpoint = Checkpoint.open(tiny)
    info = describe(checkpoint)
    convert(checkpoint, tmp_path / "base.gguf")
    report = export_plan(tmp_path / "base.gguf", tmp_path / "o.gguf", info, uniform_plan(info, "q4_k"), "f16", {}, 1)
    down = next(r for r in report["tensors"] if r["layer"] == "model.layers.0.mlp.down_proj")
    assert down["written"] == "Q5_0" and down["why"] == "q4_k -> q5_0: 96 columns"


def test_exporting_twice_gives_the_same_bytes(model, base, mixed, mixed_file, tmp_path):
    export_plan(base, tmp_path / "again.gguf", model[1], mixed, "bf16", {}, 1)
    assert (tmp_path / "again.gguf").read_bytes() == mixed_file[0].read_bytes()


def test_values_that_f16_cannot_hold_stay_bf16(model, base, monkeypatch):
    import bitplan.runtimes.gguf.file as module

    monkeypatch.setattr(module, "HALF_LIMIT", 0.01)
    records = plan_tensors(GGUFReader(base), model[1], uniform_plan(model[1], "bf16"), "f16")
    assert {record.written for record in records if record.layer} == {"BF16"}


@pytest.fixture(scope="module")
def importance(model, demo) -> dict[str, np.ndarray]:
    from bitplan.reference.text import windows
    from bitplan.statistics.layer_stats import measure_layers

    checkpoint, info = model
    text = windows(checkpoint.folder, demo / "calibration.txt", 256, 8)
    _, inputs, _ = measure_layers(open_model(checkpoint), info, text)
    return {name: seen.mean_square.float().numpy() for name, seen in inputs.items()}


def types_and_bytes(path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("recipe", ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m"])
@pytest.mark.parametrize("weighed", [True, False])
def test_the_types_of_a_recipe_written_by_us_are_its_own_bytes(model, base, importance, recipe, weighed, tmp_path):
    columns = importance if weighed else {}
    given = importance_by_tensor(base, model[1], columns)
    quantize_by_recipe(base, tmp_path / "theirs.gguf", recipe, 2, importance=given)
    theirs = types_and_bytes(tmp_path / "theirs.gguf")
    records = plan_tensors(GGUFReader(base), model[1], uniform_plan(model[1], "q8_0"), "f16")
    records = [replace(r, written=theirs[r.tensor][0], bytes=len(theirs[r.tensor][1])) for r in records]
    rewrite(base, tmp_path / "ours.gguf", records, columns, 2)
    assert types_and_bytes(tmp_path / "ours.gguf") == theirs
    assert len({kind for kind, _ in theirs.values()}) > 2


def test_a_recipe_with_the_importance_matrix_damages_less(model, base, reference, importance, tmp_path):
    kl = []
    for name, given in (("plain", {}), ("weighed", importance_by_tensor(base, model[1], importance))):
        quantize_by_recipe(base, tmp_path / f"{name}.gguf", "q2_k", 2, importance=given)
        kl.append(summarize(score_gguf(tmp_path / f"{name}.gguf", reference, 1))["kl_mean"])
    assert kl[1] < kl[0]


def test_experts_are_given_to_llama_cpp_one_after_another_and_ones_where_no_token_came(tmp_path):
    checkpoint = Checkpoint.open(make_family("mixtral", tmp_path / "model"))
    info, base = describe(checkpoint), tmp_path / "base.gguf"
    convert(checkpoint, base)
    columns = {
        layer.name: np.random.default_rng(i).random(layer.shape[1]).astype(np.float32)
        for i, layer in enumerate(info.quantizable)
        if not layer.name.endswith("1.block_sparse_moe.experts.2.w2")
    }
    given = importance_by_tensor(base, info, columns)
    down = np.split(given["blk.1.ffn_down_exps.weight"], 4)
    assert (down[2] == 1).all() and np.array_equal(down[3], columns["model.layers.1.block_sparse_moe.experts.3.w2"])
    assert not {"token_embd.weight", "output.weight"} & given.keys()
    quantize_by_recipe(base, tmp_path / "o.gguf", "q4_0", 1, importance=given)
    plan = uniform_plan(info, "q4_0")
    export_plan(base, tmp_path / "ours.gguf", info, plan, "f16", columns, 1)
    theirs, ours = types_and_bytes(tmp_path / "o.gguf"), types_and_bytes(tmp_path / "ours.gguf")
    experts = [name for name in ours if name.endswith("_exps.weight") and theirs[name][0] == "Q4_0"]
    # We quantize an expert that has no importance as without, not as if all of its columns were alike.
    assert [name for name in experts if ours[name] != theirs[name]] == ["blk.1.ffn_down_exps.weight"]
    assert len(experts) > 3


def test_an_importance_matrix_lowers_the_damage_of_low_bits(model, base, reference, importance, tmp_path):
    info, kl = model[1], []
    for name, matrix in (("plain", {}), ("weighted", importance)):
        export_plan(base, tmp_path / f"{name}.gguf", info, uniform_plan(info, "q2_k"), "bf16", matrix, 2)
        kl.append(summarize(score_gguf(tmp_path / f"{name}.gguf", reference, 1))["kl_mean"])
    assert kl[1] < kl[0]


def test_a_tied_output_matrix_becomes_the_embedding_that_llama_cpp_reads(assets, tmp_path):
    checkpoint = Checkpoint.open(assets / "tinystories-656k")
    convert(checkpoint, tmp_path / "base.gguf")
    made = make_reference(open_model(checkpoint), assets / "tinystories-text" / "stories.txt", 512, 4, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", made, 1))["kl_mean"] < 1e-6


def test_a_file_cut_short_is_refused_with_the_runtimes_own_word(mixed_file, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(mixed_file[0].read_bytes()[:100_000])
    with pytest.raises(UserError, match="not loaded by llama.cpp: .*(data|tensor|read)"), opened(short, 64, 1):
        pass


def test_report_json_is_valid_without_nan(mixed_file):
    assert math.isfinite(json.loads(json.dumps(mixed_file[1], allow_nan=False))["avg_bits_file"])


def test_the_fake_quantized_weight_is_the_weight_in_the_file(model, base, mixed, mixed_file):
    from gguf import dequantize

    layer = model[1].quantizable[-1]
    stored = next(t for t in GGUFReader(mixed_file[0]).tensors if t.name == f"blk.{layer.block}.ffn_down.weight")
    weight = model[0].read([f"{layer.name}.weight"])[f"{layer.name}.weight"].float()
    simulated = QuantizedWeights().get(layer.name, weight, mixed.of(layer.name))
    assert torch.equal(simulated, torch.from_numpy(dequantize(stored.data, stored.tensor_type)))
