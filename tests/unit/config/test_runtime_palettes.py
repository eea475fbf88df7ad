"""Palettes and runtimes in a configuration: what `runtime` stands for, and what is refused at the start."""

from types import SimpleNamespace as Wildcards

import pytest

from bitplan.config.completion import completed
from bitplan.config.runtime_palettes import check_palettes
from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.runtimes.runtime import Runtime, Verdict
from bitplan.workflow.flags import plan_flags
from bitplan.workflow.inputs import told_runtimes
from tests.conftest import ROOT

BOTH = ["gguf", "compressed_tensors"]
HELD = ["mxfp4_mse", "int4_bf16s_g32", "gguf_nvfp4", "int5_bf16s_g32", "int8_bf16s_g32", "bf16"]


def settings(runtimes=BOTH, plan=None, **more):
    texts = {"calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    plan = {"method": "optimal", "target_avg_bits": 6.0, "palette": "runtime", **(plan or {})}
    config = {"models": {"mine": {"path": "a/b", **texts, "runtimes": runtimes}}, "plans": {"both": plan}, **more}
    return parse_settings(completed(config, ROOT))


def problem_of(made):
    with pytest.raises(UserError) as caught:
        check_palettes(made)
    (problem,) = caught.value.problems
    assert problem.hint and "\n" not in str(problem)
    return problem


def test_three_lines_are_enough_for_a_plan_that_two_runtimes_hold():
    made = settings()
    check_palettes(made)
    assert made.plans["both"].palette == made.sensitivity.palette == HELD
    assert made.plans["both"].sizes == "stored" and made.sensitivity.embeddings == []
    flags = plan_flags(made, Wildcards(model="mine", plan="both"))
    assert "--runtimes gguf --runtimes compressed_tensors" in flags and "--sizes stored" in flags
    assert "--palette int4_bf16s_g32" in flags


def test_sizes_that_are_named_stay_and_the_genetic_search_has_the_same_palette():
    assert settings(plan={"sizes": "format"}).plans["both"].sizes == "format"
    made = settings(plan={"method": "genetic"})
    check_palettes(made)
    assert made.plans["both"].palette == HELD


def test_a_study_and_several_models_have_what_all_runtimes_hold():
    texts = {"calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    models = {name: {"path": "a/b", **texts, "runtimes": [runtime]} for name, runtime in zip("ab", BOTH, strict=True)}
    plan = {"method": "optimal", "target_avg_bits": 6.0, "palette": "runtime"}
    study = {"plan": plan, "vary": {"target_avg_bits": [5.0, 6.0]}}
    made = parse_settings(completed({"models": models, "plans": {"x": plan}, "studies": {"s": study}}, ROOT))
    check_palettes(made)
    assert {tuple(each.palette) for each in made.every_plan.values()} == {tuple(HELD)}


def test_a_runtime_that_changes_no_choice_is_not_told_to_the_search():
    named = {"palette": ["int4", "int8"]}
    wildcards = Wildcards(model="mine", plan="both")
    # Rows that groups do not divide are refused by one of them, embeddings too.
    assert told_runtimes(settings(plan=named), wildcards) == ["compressed_tensors"]
    assert told_runtimes(settings(["gguf"], plan=named), wildcards) == []
    table = {"sensitivity": {"embeddings": ["q6_k"]}}
    assert told_runtimes(settings(plan=named, **table), wildcards) == ["compressed_tensors"]
    assert "runtimes" not in plan_flags(settings(["gguf"], plan=named, **table), wildcards)


def test_models_without_runtimes_have_no_palette_of_them():
    problem = problem_of(settings([]))
    assert (problem.code, problem.where) == ("RUNTIME-NO-PALETTE", "plans.both.palette")
    assert "models mine name no runtime" in problem.what and "models.X.runtimes" in problem.hint


def test_runtimes_that_hold_nothing_in_common_are_named(monkeypatch):
    def verdict(layer, made, info):
        return Verdict("exact", "x", 16.0) if made.wq == "bf16" else Verdict("refused", "", 0.0, "too narrow")

    toy = Runtime("toy", "x.toy", verdict, dict, str)
    monkeypatch.setitem(RUNTIMES, "toy", "toy")
    for module in ("bitplan.config.runtime_palettes", "bitplan.workflow.inputs"):
        monkeypatch.setattr(f"{module}.runtime_named", lambda name: toy if name == "toy" else runtime_named(name))
    problem = problem_of(settings(["gguf", "toy"]))
    assert problem.code == "RUNTIME-NO-PALETTE" and "mine (gguf, toy)" in problem.what


def test_formats_that_a_runtime_refuses_are_named_with_plan_model_and_runtime():
    problem = problem_of(settings(plan={"palette": ["q4_k", "int4", "q8_0"]}))
    assert (problem.code, problem.where) == ("RUNTIME-REFUSED", "plans.both.palette")
    assert "q4_k, q8_0, which compressed_tensors of model mine cannot store: compressed-tensors has no" in problem.what
    assert "palette: runtime" in problem.hint and "models.mine.runtimes" in problem.hint


def test_a_target_that_no_stored_format_reaches_is_refused_before_anything_is_measured():
    problem = problem_of(settings(plan={"target_avg_bits": 4.0}))
    assert problem.code == "SEARCH-TARGET-OUT-OF-REACH" and "in fewer than 4.25" in problem.what
    check_palettes(settings(plan={"target_avg_bits": 4.3}))
    check_palettes(settings(["gguf"], plan={"target_avg_bits": 2.7}))


@pytest.mark.parametrize("palette", [["runtime", "q4_k"], "runtimes", ["q9"]])
def test_runtime_stands_alone_and_other_words_are_formats(palette):
    with pytest.raises(UserError, match="plans.both.palette"):
        settings(plan={"palette": palette})


def test_one_format_may_stand_for_a_list():
    assert settings(plan={"palette": "int8"}).plans["both"].palette == ["int8"]
