"""What a runtime holds of a plan, said before anything is written."""

import json

import pytest

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.runtimes.check import check_plan, print_check
from bitplan.runtimes.registry import runtime_named


@pytest.fixture(scope="module")
def info(demo):
    return describe(Checkpoint.open(demo / "model"))


def rows(report) -> dict[str, dict]:
    return {row["layer"]: row for row in report["layers"]}


def test_every_layer_has_a_verdict_and_the_bits_are_those_of_the_stored_types(info):
    report = check_plan(runtime_named("compressed_tensors"), uniform_plan(info, "mxfp6_e2m3"), info)
    assert report["verdicts"] == {"exact_in_more_bits": len(info.quantizable)}
    assert (report["plan_bits"], report["stored_bits"]) == (pytest.approx(6.25), pytest.approx(8.25))
    assert report["groups"] == []


def test_a_group_whose_layers_differ_is_named_with_what_agreeing_costs(info):
    plan = uniform_plan(info, "mxfp4")
    plan = Plan({**plan.layers, "model.layers.2.mlp.up_proj": LayerPlan("mxfp8")})
    report = check_plan(runtime_named("compressed_tensors"), plan, info)
    (group,) = report["groups"]
    assert group["group"] == "model.layers.2.gate_up" and group["extra_bits"] == (8.25 - 4.25) * 768 * 256
    assert check_plan(runtime_named("gguf"), plan, info)["groups"] == []


def test_what_is_printed_has_a_line_for_each_layer_and_one_for_each_group(info, capsys):
    plan = Plan({**uniform_plan(info, "mxfp4").layers, "model.layers.2.mlp.up_proj": LayerPlan("q4_k")})
    report = check_plan(runtime_named("compressed_tensors"), plan, info)
    print_check(report)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(info.quantizable) + 1 + 1
    assert "gate_proj mxfp4 g32, up_proj refused" in lines[-2]
    assert lines[-1].startswith("compressed_tensors: 27 exact, 1 refused;")
    assert rows(report)["model.layers.2.mlp.up_proj"]["why"] == "compressed-tensors has no packing for q4_k"


def test_gguf_says_which_type_comes_nearest_and_which_rows_do_not_fit(info):
    report = rows(check_plan(runtime_named("gguf"), uniform_plan(info, "int4_asym"), info))
    assert {row["stored"] for row in report.values()} == {"Q4_1"}
    assert all(row["verdict"] == "approximate" and "nearest" in row["why"] for row in report.values())


def test_gguf_says_which_type_holds_the_codes_of_a_format_and_in_how_many_bits(info):
    report = rows(check_plan(runtime_named("gguf"), uniform_plan(info, "int4"), info))
    assert {(row["stored"], row["verdict"], row["stored_bits"]) for row in report.values()} == {
        ("Q4_0", "exact_in_more_bits", 4.5)
    }


def test_the_command_prints_verdicts_writes_no_model_and_ends_with_2_where_a_layer_is_refused(command, demo, tmp_path):
    for wq, ok in (("int4", True), ("q4_k", False)):
        (tmp_path / "plan.json").write_text(json.dumps({"default": {"wq": wq}, "overrides": []}))
        line = ("--model", demo / "model", "--plan", tmp_path / "plan.json", "--runtime", "compressed_tensors")
        made = command("check_runtime.py", *line, "--output", tmp_path / "check.json", ok=ok)
        assert "stored as" in made.stdout.splitlines()[0] and "Traceback" not in made.stderr
        assert made.returncode == (0 if ok else 2)
        verdicts = json.loads((tmp_path / "check.json").read_text())["verdicts"]
        assert verdicts == {"exact" if ok else "refused": 28}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.json", "plan.json"]


def test_a_runtime_that_is_not_known_is_an_error_with_the_nearest_name(command, demo, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"default": {"wq": "int4"}, "overrides": []}))
    line = ("--model", demo / "model", "--plan", tmp_path / "plan.json", "--runtime", "gguff")
    made = command("check_runtime.py", *line, ok=False)
    assert made.returncode == 2 and "gguff" in made.stderr and "gguf" in made.stderr
