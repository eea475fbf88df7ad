"""Rounded plans on whole models: resumption, plans and their codes, checkpoints, GGUF files that hold the very codes, the command."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM

import bitplan.rounding.model as rounding_model
from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_nll
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, read_plan, uniform_plan, write_plan
from bitplan.rounding.model import ModelRounding, round_plan
from bitplan.rounding.tuning import TuningSettings
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import base_file, export_plan
from bitplan.runtimes.gguf.file import plan_tensors, rewrite
from bitplan.runtimes.gguf.options import GGUFOptions
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from tests.conftest import ROOT
from tests.families import FAMILIES, TEXT, make_family
from tests.unit.search.opened_models import Opened

FEW_STEPS = ModelRounding("tuned", tuning=TuningSettings(5, 64))
BLOCK_OF_32 = ("q8_0", "q4_0", "q5_1", "iq4_nl")


def mixed(info, *formats: str) -> Plan:
    """A plan whose layers have some formats in turn."""
    layers = {
        layer.name: LayerPlan(formats[i % len(formats)], group_size=32) for i, layer in enumerate(info.quantizable)
    }
    return Plan({layer.name: layers.get(layer.name, LayerPlan()) for layer in info.layers})


def rounded(case: Opened, plan: Plan, folder, settings: ModelRounding | None = None) -> Plan:
    return round_plan(case.model, case.info, plan, case.reference.tokens, settings or ModelRounding(), folder)[0]


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral", "gemma2", "opt"])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    case = Opened(make_family(request.param, folder / "model"))
    return request.param, case, rounded(case, mixed(case.info, *BLOCK_OF_32), folder / "rounded")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


# ------------------------------------------------------------------------------------------------------------- the walk


def test_layers_with_experts_and_quantized_inputs_aim_at_the_reference_model_too(tmp_path):
    made = Opened(make_family("mixtral", tmp_path / "model"))
    plans = {aq: uniform_plan(made.info, "int3", aq, 32) for aq in ("bf16", "mxfp4")}
    for aq, plan in plans.items():
        half, own = (
            rounded(made, plan, tmp_path / f"{aq}{share}", ModelRounding(reference_share=share)) for share in (0.5, 0)
        )
        assert half.rounded.digest != own.rounded.digest


def test_tuning_keeps_the_full_precision_models_own_states_as_its_target(llama, tmp_path, monkeypatch):
    seen = []
    real = rounding_model.tune_

    def note(modules, columns, hidden, target, *rest):
        seen.append((hidden.clone(), target.clone()))
        return real(modules, columns, hidden, target, *rest)

    monkeypatch.setattr(rounding_model, "tune_", note)
    rounded(llama, uniform_plan(llama.info, "int2"), tmp_path / "r", FEW_STEPS)
    whole = []
    llama.model.run(
        llama.reference.tokens, lambda block, hidden, forward: whole.append(forward(hidden)) or whole[-1].clone()
    )
    assert [torch.equal(target, states) for (_, target), states in zip(seen, whole, strict=True)] == [True, True]
    assert not torch.allclose(seen[1][0], whole[0])


def test_a_block_without_codes_is_left_and_the_others_are_tuned(llama, tmp_path):
    plan = uniform_plan(llama.info, "int2")
    layers = {name: LayerPlan() if ".layers.0." in name else choice for name, choice in plan.layers.items()}
    tuned = rounded(llama, replace(plan, layers=layers), tmp_path / "r", FEW_STEPS)
    names = [layer.name for layer in llama.info.quantizable]
    assert [name in tuned.rounded for name in names] == [".layers.1." in name for name in names]


@pytest.mark.parametrize("aq", ["bf16", "mxfp4", "int8_token"])
def test_gradients_pass_quantized_inputs(llama, tmp_path, aq, caplog):
    caplog.set_level("INFO")
    rounded(
        llama,
        uniform_plan(llama.info, "int3", aq, 32),
        tmp_path / "r",
        ModelRounding("tuned", tuning=TuningSettings(20, 96)),
    )
    logged = [record.args for record in caplog.records if record.msg.startswith("block %d")]
    assert len(logged) == 2 and all(after < before for _, before, after in logged)


def test_a_block_is_rounded_on_the_outputs_of_the_rounded_ones_before_it(llama, tmp_path, monkeypatch):
    seen = {}
    real = rounding_model.round_layer

    def note(layer, *how):
        seen[layer.name] = layer.hessian.clone()
        return real(layer, *how)

    monkeypatch.setattr(rounding_model, "round_layer", note)
    for name in ("int2", "int8"):
        rounded(llama, uniform_plan(llama.info, name), tmp_path / name)
        seen[name] = seen["model.layers.0.self_attn.q_proj"], seen["model.layers.1.self_attn.q_proj"]
    (first, second), (also_first, other) = seen["int2"], seen["int8"]
    assert torch.equal(first, also_first) and not torch.allclose(second, other)


@pytest.mark.parametrize("settings", [ModelRounding(), FEW_STEPS], ids=["feedback", "tuned"])
def test_a_run_that_was_stopped_goes_on_and_writes_the_same_bytes(llama, tmp_path, monkeypatch, settings):
    plan = mixed(llama.info, "q4_0", "int4", "mxfp4")
    whole = rounded(llama, plan, tmp_path / "whole", settings)
    real, requests = rounding_model.round_layer, []

    def stops(layer, *how):
        requests.append(layer.name)
        if ".layers.1." in layer.name:
            raise KeyboardInterrupt
        return real(layer, *how)

    monkeypatch.setattr(rounding_model, "round_layer", stops)
    with pytest.raises(KeyboardInterrupt):
        rounded(llama, plan, tmp_path / "again", settings)
    assert (tmp_path / "again.partial").is_dir() and not (tmp_path / "again").exists()
    monkeypatch.setattr(
        rounding_model, "round_layer", lambda layer, *how: requests.append(layer.name) or real(layer, *how)
    )
    requests.clear()
    again = rounded(llama, plan, tmp_path / "again", settings)
    assert requests and not any(".layers.0." in name for name in requests) and not (tmp_path / "again.partial").exists()
    assert again.rounded.digest == whole.rounded.digest
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_what_a_run_with_other_settings_has_left_is_not_gone_on_from(llama, tmp_path, monkeypatch):
    real = rounding_model.round_layer

    def stops(layer, *how):
        if ".layers.1." in layer.name:
            raise KeyboardInterrupt
        return real(layer, *how)

    plan = uniform_plan(llama.info, "int4")
    monkeypatch.setattr(rounding_model, "round_layer", stops)
    with pytest.raises(KeyboardInterrupt):
        rounded(llama, plan, tmp_path / "r", ModelRounding(damping=0.1))
    monkeypatch.setattr(rounding_model, "round_layer", real)
    rounded_plan = rounded(llama, plan, tmp_path / "r")
    assert rounded_plan.rounded.digest == rounded(llama, plan, tmp_path / "other").rounded.digest


def test_layers_without_codes_and_those_outside_the_blocks_are_left_as_the_plan_has_them(llama, tmp_path):
    plan = mixed(llama.info, "int4", "bf16", "fp16")
    rounded_plan = rounded(llama, plan, tmp_path / "r")
    assert {name for name in plan.layers if name in rounded_plan.rounded} == {
        name for name, choice in plan.layers.items() if choice.wq == "int4"
    }


def test_a_plan_without_codes_to_choose_is_written_as_it_is_and_the_log_says_so(llama, tmp_path, caplog):
    made = rounded(llama, uniform_plan(llama.info, "bf16"), tmp_path / "plan" / "rounded")
    assert "nothing to round" in caplog.text and not (tmp_path / "plan" / "rounded.partial").exists()
    write_plan(tmp_path / "plan" / "plan.json", made, LayerPlan(), llama.info)
    again = read_plan(tmp_path / "plan" / "plan.json", llama.info)
    assert not any(layer.name in again.rounded for layer in llama.info.layers)


def test_with_activation_formats_layers_are_rounded_for_the_quantized_inputs(llama, tmp_path):
    plain, quantized = (rounded(llama, uniform_plan(llama.info, "int4", aq), tmp_path / aq) for aq in ("bf16", "mxfp4"))
    assert plain.rounded.digest != quantized.rounded.digest
    name = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(plain.rounded.weight(name), quantized.rounded.weight(name))


# ------------------------------------------------------------------------------------------------------ plans and codes


@pytest.fixture
def written(llama, tmp_path):
    rounded_plan = rounded(llama, mixed(llama.info, "int4", "mxfp8_e5m2", "q4_0"), tmp_path / "made" / "rounded")
    write_plan(tmp_path / "made" / "plan.json", rounded_plan, LayerPlan(), llama.info)
    return tmp_path / "made" / "plan.json", rounded_plan


def test_a_plan_that_is_written_and_read_has_the_same_weights(written, llama, tmp_path):
    path, rounded_plan = written
    again = read_plan(path, llama.info)
    assert again.rounded.rounding == "feedback"
    write_plan(tmp_path / "copy" / "plan.json", again, LayerPlan(), llama.info)
    copy = read_plan(tmp_path / "copy" / "plan.json", llama.info)
    for layer in llama.info.quantizable:
        assert torch.equal(copy.rounded.weight(layer.name), rounded_plan.rounded.weight(layer.name))
    expected = plan_nll(llama.model, llama.info, rounded_plan, llama.reference, QuantizedWeights())
    assert torch.equal(plan_nll(llama.model, llama.info, copy, llama.reference, QuantizedWeights()), expected)
    plain = plan_nll(llama.model, llama.info, replace(rounded_plan, rounded=None), llama.reference, QuantizedWeights())
    assert not torch.equal(plain, expected)


def test_a_plan_whose_formats_were_changed_after_rounding_is_refused(written, llama):
    path, _ = written
    content = json.loads(path.read_text())
    entry = next(entry for entry in content["overrides"] if entry.get("wq") == "int4")
    entry["wq"] = "int3"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"ROUNDED-OTHER-FORMAT.*{entry['pattern']}"):
        read_plan(path, llama.info)


@pytest.mark.parametrize("how", ["absent", "other digest", "cut short"])
def test_codes_that_are_not_the_plans_are_refused(written, llama, how):
    path, _ = written
    if how == "absent":
        shutil.rmtree(path.parent / "rounded")
    if how == "other digest":
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "rounded": {**content["rounded"], "sha256": "0" * 64}}))
    if how == "cut short":
        block = path.parent / "rounded" / "block-00000.safetensors"
        block.write_bytes(block.read_bytes()[:100])
    with pytest.raises(UserError):
        read_plan(path, llama.info)


def test_a_checkpoint_holds_the_rounded_values(written, llama, tmp_path):
    _, rounded_plan = written
    write_checkpoint(tmp_path / "o", llama.checkpoint, llama.info, rounded_plan, QuantizedWeights())
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    for layer in llama.info.quantizable:
        assert torch.equal(module.get_submodule(layer.name).weight, rounded_plan.rounded.weight(layer.name))


# ----------------------------------------------------------------------------------------------------------------- GGUF


@pytest.fixture(scope="module")
def base_of_llama(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(llama.checkpoint, path)
    return path


def values_in(path) -> dict[str, np.ndarray]:
    return {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


def test_a_gguf_holds_the_very_codes_wherever_its_converter_puts_rows(family, tmp_path):
    name, case, plan = family
    if not FAMILIES[name].gguf:
        pytest.skip("llama.cpp does not know this family")
    with base_file(None, case.checkpoint, tmp_path, case.info, plan) as base:
        report = export_plan(base, tmp_path / "o.gguf", case.info, plan)
    values, exact = values_in(tmp_path / "o.gguf"), 0
    for record in report["tensors"]:
        if record["layers"] == 1 and record["layer"] in plan.rounded:
            own = plan.rounded.weight(record["layer"]).numpy()
            stored = values[record["tensor"]]
            order = lambda rows: rows[np.lexsort(rows.T)]  # noqa: E731
            assert np.array_equal(order(stored), order(own)) and record["why"] == ""
            exact += 1
    assert report["rounded"]["exact"] >= exact > 0
    expected = plan_nll(case.model, case.info, plan, case.reference, QuantizedWeights()).double().mean().item()
    scores = score_gguf(tmp_path / "o.gguf", case.reference, 1)
    tolerance = 0.01 if report["rounded"]["exact"] == report["rounded"]["layers"] else 0.1
    assert scores.nll.double().mean().item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "kind"), [("mxfp4_mse", "MXFP4"), ("int3", "Q4_0"), ("int5", "Q5_0"), ("mxfp6_e2m3", "Q8_0")]
)
def test_formats_of_ours_go_into_the_type_that_holds_their_codes(llama, base_of_llama, name, kind, tmp_path):
    plan = rounded(llama, uniform_plan(llama.info, name, group_size=32), tmp_path / "r")
    report = export_plan(base_of_llama, tmp_path / "o.gguf", llama.info, plan, GGUFOptions(match="distortion"))
    records = [record for record in report["tensors"] if record["layer"] in plan.rounded]
    assert {record["written"] for record in records} == {kind} and not any(record["why"] for record in records)
    own = plan.rounded.weight("model.layers.0.mlp.down_proj").numpy()
    assert np.array_equal(values_in(tmp_path / "o.gguf")["blk.0.ffn_down.weight"], own)


def test_codes_that_no_type_holds_are_said_not_to_be_in_the_file(llama, base_of_llama, tmp_path):
    plan = rounded(llama, uniform_plan(llama.info, "int3_asym", group_size=32), tmp_path / "r")
    report = export_plan(base_of_llama, tmp_path / "o.gguf", llama.info, plan)
    assert report["rounded"] == {"rounding": "feedback", "layers": len(llama.info.quantizable), "exact": 0}
    reasons = [record["why"] for record in report["tensors"] if record["layer"] in plan.rounded]
    assert all("rounded to nearest" in why for why in reasons)


def half_precision(base, case: Opened):
    return plan_tensors(GGUFReader(base), case.info, uniform_plan(case.info, "bf16"), "f16")


def test_a_base_file_that_does_not_hold_the_checkpoints_values_is_refused(llama, base_of_llama, tmp_path):
    plan = rounded(llama, uniform_plan(llama.info, "q4_0"), tmp_path / "r")
    rewrite(base_of_llama, tmp_path / "half.gguf", half_precision(base_of_llama, llama))
    with pytest.raises(UserError, match="GGUF-OTHER-VALUES"):
        export_plan(tmp_path / "half.gguf", tmp_path / "o.gguf", llama.info, plan)
    assert not (tmp_path / "o.gguf").exists()


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_rounds_a_plan_and_every_later_command_uses_its_codes(command, tmp_path):
    (tmp_path / "config.json").write_text('{"default": {"wq": "q3_k"}}')
    model = ROOT / "demo" / "model"
    windows = ("--sequences", 2, "--length", 64, "--threads", 1)
    result = command("round_model.py", "--model", model, "--plan", tmp_path / "config.json", "--calibration", TEXT,
                   "--output", tmp_path / "r", *windows)  # fmt: skip
    assert "28 layers rounded, 28 by feedback" in result.stdout
    assert len((tmp_path / "r" / "rounding.tsv").read_text().splitlines()) == 29
    plan = tmp_path / "r" / "plan.json"
    text = ("--text", ROOT / "demo" / "evaluation.txt")
    command("quantize_model.py", "--model", model, "--layer-config", plan, "--output", tmp_path / "q")
    for flags, name in ((("--model", model, "--plan", plan), "plan"), (("--model", tmp_path / "q"), "folder")):
        command("perplexity.py", *flags, *text, *windows, "--output", tmp_path / f"{name}.json")
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text())["ppl"] for name in ("plan", "folder"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    command("export_gguf.py", "--model", model, "--plan", plan, "--output", tmp_path / "o.gguf",
            "--report", tmp_path / "o.json")  # fmt: skip
    assert json.loads((tmp_path / "o.json").read_text())["rounded"] == {
        "rounding": "feedback",
        "layers": 28,
        "exact": 28,
    }
    again = command("round_model.py", "--model", model, "--plan", plan, "--calibration", TEXT, "--output",
                    tmp_path / "r", *windows, ok=False)  # fmt: skip
    assert "[OUTPUT-IS-INPUT] --output" in again.stderr and "Traceback" not in again.stderr
