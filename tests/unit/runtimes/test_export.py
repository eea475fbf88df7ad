"""GGUF: the base file scores as transformers does, mixed files are llama.cpp's own bytes, the report is the file."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

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
from bitplan.runtimes.gguf.options import GGUFOptions, TensorContents
from bitplan.runtimes.gguf.recipe_importance import importance_by_tensor
from bitplan.runtimes.gguf.recipes import quantize_by_recipe
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.verdicts import plan_verdicts
from tests.families import make_family

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "gguf_mxfp4")


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
    return path, export_plan(base, path, model[1], mixed, GGUFOptions(unquantized="bf16", threads=2))


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
    with pytest.raises(UserError, match="GGUF-OTHER-TYPE"):
        check_written(mixed_file[0], other)


def test_the_report_says_why_a_tensor_is_not_what_was_asked_for(model, base):
    plan = uniform_plan(model[1], "mxfp8", "mxfp8")
    records = {record.layer: record for record in plan_tensors(GGUFReader(base), model[1], plan, "f16")}
    one = records["model.layers.0.self_attn.q_proj"]
    assert one.written == "Q8_0"
    assert (
        "mxfp8 is not a GGUF type, Q8_0 is the closest" in one.why and "cannot hold activation format mxfp8" in one.why
    )
    assert records["model.embed_tokens"].written == "F16" and "protected" in records["model.embed_tokens"].why


def test_rows_that_do_not_fit_a_type_fall_back_and_the_report_says_so(tiny, tmp_path):
    checkpoint = Checkpoint.open(tiny)
    info = describe(checkpoint)
    convert(checkpoint, tmp_path / "base.gguf")
    report = export_plan(tmp_path / "base.gguf", tmp_path / "o.gguf", info, uniform_plan(info, "q4_k"))
    down = next(r for r in report["tensors"] if r["layer"] == "model.layers.0.mlp.down_proj")
    assert down["written"] == "Q5_0" and down["why"] == "q4_k -> q5_0: 96 columns"


def test_exporting_twice_gives_the_same_bytes(model, base, mixed, mixed_file, tmp_path):
    export_plan(base, tmp_path / "again.gguf", model[1], mixed, GGUFOptions(unquantized="bf16"))
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
    rewrite(base, tmp_path / "ours.gguf", records, TensorContents(columns), 2)
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
    export_plan(base, tmp_path / "ours.gguf", info, plan, GGUFOptions(importance=columns))
    theirs, ours = types_and_bytes(tmp_path / "o.gguf"), types_and_bytes(tmp_path / "ours.gguf")
    experts = [name for name in ours if name.endswith("_exps.weight") and theirs[name][0] == "Q4_0"]
    # We quantize an expert that has no importance as without, not as if all of its columns were alike.
    assert [name for name in experts if ours[name] != theirs[name]] == ["blk.1.ffn_down_exps.weight"]
    assert len(experts) > 3


def test_an_importance_matrix_lowers_the_damage_of_low_bits(model, base, reference, importance, tmp_path):
    info, kl = model[1], []
    for name, matrix in (("plain", {}), ("weighted", importance)):
        export_plan(
            base,
            tmp_path / f"{name}.gguf",
            info,
            uniform_plan(info, "q2_k"),
            GGUFOptions(unquantized="bf16", importance=matrix, threads=2),
        )
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
    with pytest.raises(UserError, match="GGUF-NOT-LOADED.*(data|tensor|read)"), opened(short, 64, 1):
        pass


def test_report_json_is_valid_without_nan(mixed_file):
    assert math.isfinite(json.loads(json.dumps(mixed_file[1], allow_nan=False))["avg_bits_file"])


def test_the_fake_quantized_weight_is_the_weight_in_the_file(model, base, mixed, mixed_file):
    layer = model[1].quantizable[-1]
    stored = next(t for t in GGUFReader(mixed_file[0]).tensors if t.name == f"blk.{layer.block}.ffn_down.weight")
    weight = model[0].read([f"{layer.name}.weight"])[f"{layer.name}.weight"].float()
    simulated = QuantizedWeights().get(layer.name, weight, mixed.of(layer.name))
    assert torch.equal(simulated, torch.from_numpy(dequantize(stored.data, stored.tensor_type)))


# -------------------------------------------------------------------------------------------- codes of formats of ours

OURS = (
    *(("int2", 32), ("int3", 128), ("int4", None), ("int5", 64), ("int6", None), ("int7", 32), ("int8", None)),
    *(("mxfp4", None), ("mxfp4_mse", 64), ("mxfp6_e2m3", None), ("mxfp6_e2m3_mse", None), ("mxfp6_e2m3_rceil", 128)),
    *(("int3_bf16s", 32), ("int5_bf16s", None), ("int8_bf16s", 64)),
)


def of_ours(info) -> Plan:
    layers = enumerate(info.quantizable)
    return Plan(
        {layer.name: LayerPlan(wq, group_size=group) for i, layer in layers for wq, group in [OURS[i % len(OURS)]]}
    )


@pytest.fixture(scope="module")
def packed(model, base, importance, tmp_path_factory):
    """Every format whose codes a type holds, exported with importance: (file, report)."""
    path = tmp_path_factory.mktemp("packed") / "model.gguf"
    return path, export_plan(base, path, model[1], of_ours(model[1]), GGUFOptions(importance=importance))


def sorted_rows(values: np.ndarray) -> np.ndarray:
    """The rows in an order of their own: llama.cpp permutes those of queries and keys."""
    return values[np.lexsort(values.T)]


def test_a_file_holds_the_very_values_of_integers_and_mx_formats(model, importance, packed):
    checkpoint, info = model
    stored = {tensor.name: tensor for tensor in GGUFReader(packed[0]).tensors}
    weights = QuantizedWeights(importance={name: torch.from_numpy(each) for name, each in importance.items()})
    records = {record["layer"]: record for record in packed[1]["tensors"]}
    for layer in info.quantizable:
        weight = checkpoint.read([f"{layer.name}.weight"], torch.float32)[f"{layer.name}.weight"]
        simulated = weights.get(layer.name, weight, of_ours(info).of(layer.name)).numpy()
        record = records[layer.name]
        tensor = stored[record["tensor"]]
        assert np.array_equal(sorted_rows(dequantize(tensor.data, tensor.tensor_type)), sorted_rows(simulated))
        assert record["packed"] and not record["why"]


def test_the_report_says_what_is_packed_and_that_types_alone_do_not_make_it(model, packed):
    report = packed[1]
    assert report["packed"]["tensors"] == len(model[1].quantizable) and report["packed"]["extra_bytes"] > 0
    assert "packed directly" in report["tensor_types"]["without"]
    kinds = {record["written"] for record in report["tensors"] if record["packed"]}
    assert kinds == {"Q4_0", "Q5_0", "Q8_0", "MXFP4"}


def test_what_is_said_of_a_layer_before_the_export_is_what_becomes_of_it(model, packed):
    verdicts = plan_verdicts(runtime_named("gguf"), of_ours(model[1]), model[1])
    written = {record["layer"]: record["written"] for record in packed[1]["tensors"]}
    assert {verdict.status for verdict in verdicts.values()} == {"exact", "exact_in_more_bits"}
    assert all(verdict.stored_type == written[name] for name, verdict in verdicts.items())


def test_codes_that_no_type_holds_go_into_the_nearest_type_and_the_report_says_why(model, base, tmp_path, monkeypatch):
    names = [layer.name for layer in model[1].quantizable]
    plan = Plan({names[0]: LayerPlan("int3", group_size=48), names[1]: LayerPlan("mxfp6_e2m3")})
    monkeypatch.setattr("bitplan.rounding.gguf_packing.HALF_EXPONENTS", (0, 1))
    report = export_plan(base, tmp_path / "o.gguf", model[1], plan)
    records = {record["layer"]: record for record in report["tensors"]}
    assert records[names[0]]["written"] == "Q3_K" and "groups of 48 values" in records[names[0]]["why"]
    assert records[names[1]]["written"] == "Q6_K" and "float16" in records[names[1]]["why"]
    assert report["packed"] is None and report["tensor_types"]["without"] == ""


def test_by_bits_a_wider_type_is_not_taken_for_exact_values(model, base, tmp_path):
    names = [layer.name for layer in model[1].quantizable]
    plan = Plan({names[0]: LayerPlan("int2"), names[1]: LayerPlan("int4")})
    report = export_plan(base, tmp_path / "o.gguf", model[1], plan, GGUFOptions(match="bits"))
    records = {record["layer"]: record for record in report["tensors"]}
    assert (records[names[0]]["written"], records[names[0]]["packed"]) == ("Q2_K", False)
    assert (records[names[1]]["written"], records[names[1]]["packed"]) == ("Q4_0", True)


# ----------------------------------------------------------------------------------------------- llama-quantize's lines


def lines_in(path) -> dict[str, str]:
    return {line.rpartition("=")[0]: line.rpartition("=")[2] for line in path.read_text().splitlines()}


def test_the_lines_beside_a_file_make_llama_cpp_write_its_very_bytes(base, model, tmp_path):
    info = model[1]
    names = [layer.name for layer in info.quantizable]
    kinds = ("q8_0", "q4_0", "gguf_mxfp4", "q5_1", "bf16", "iq4_nl")
    plan = Plan({name: LayerPlan(kinds[place % len(kinds)]) for place, name in enumerate(names)})
    report = export_plan(base, tmp_path / "model.gguf", info, plan)
    lines = lines_in(tmp_path / "tensor_types.txt")
    assert report["tensor_types"] == {"file": "tensor_types.txt", "without": ""}
    theirs = tmp_path / "theirs.gguf"
    quantize_by_recipe(base, theirs, "q8_0", 1, tensors={pattern: kind.upper() for pattern, kind in lines.items()})
    ours, others = (GGUFReader(path).tensors for path in (tmp_path / "model.gguf", theirs))
    matrices = [tensor for tensor in ours if len(tensor.shape) > 1 and int(tensor.shape[1]) > 1]
    assert len(lines) == len(matrices) > len(names)
    for tensor in matrices:
        assert len([pattern for pattern in lines if re.search(pattern, tensor.name)]) == 1, tensor.name
    held = {tensor.name: (tensor.tensor_type, bytes(tensor.data)) for tensor in others}
    assert [tensor.name for tensor in ours if held[tensor.name] != (tensor.tensor_type, bytes(tensor.data))] == []


def test_a_file_of_another_name_has_lines_of_its_own(base, model, tmp_path):
    export_plan(base, tmp_path / "small.gguf", model[1], uniform_plan(model[1], "q4_0"))
    assert (tmp_path / "small.tensor_types.txt").is_file() and not (tmp_path / "tensor_types.txt").exists()
    assert (tmp_path / "small.Modelfile").read_text() == "FROM ./small.gguf\n"
