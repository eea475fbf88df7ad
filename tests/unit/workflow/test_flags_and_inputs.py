"""What the rules compute from settings and wildcards: flags, inputs, targets, memory and time."""

from types import SimpleNamespace

import pytest

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.workflow import flags, inputs, resources, targets
from tests.conftest import ROOT

MODEL = {"path": "demo/model", "calibration": "a.txt", "evaluation": "b.txt"}
PLANS = {
    "threshold": {"method": "adaptive"},
    "tasked": {"method": "adaptive", "task": "demo_stories"},
    "typed": {"method": "adaptive", "formats": ["q4_k", "q8_0"]},
    "chance": {"method": "random"},
    "w4": {"method": "genetic"},
    "best": {"method": "optimal", "target_avg_bits": 6.0},
    "sized": {"method": "optimal", "same_size_as": "q4_k_m", "correct": False},
    "pruned": {"method": "sparsegpt", "sparsity": 0.5},
}
PALETTE = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"]


def settings(**changes):
    base = {"models": {"m": MODEL}, "plans": PLANS, "sensitivity": {"anchors": 2, "palette": PALETTE}}
    return parse_settings({**base, "calibration": {"sequences": 16}, **changes})


def job(**wildcards):
    return SimpleNamespace(model="m", **wildcards)


def words(text: str) -> list[str]:
    return text.split()


def value(text: str, flag: str) -> str:
    return words(text)[words(text).index(flag) + 1]


def test_a_plans_flags_are_its_settings_without_its_method_and_its_check():
    made = flags.plan_flags(settings(), job(plan="threshold"))
    assert value(made, "--ppl-threshold") == "0.1" and value(made, "--device") == "cpu"
    assert not {"--method", "--check", "--task", "--length"} & set(words(made))


def test_a_plan_limited_by_a_task_sees_the_windows_of_the_tasks():
    made = flags.plan_flags(settings(tasks={"max_length": 128}), job(plan="tasked"))
    assert value(made, "--length") == "128" and value(made, "--task") == "demo_stories"


def test_a_method_that_runs_no_model_takes_no_device():
    assert "--device" not in flags.plan_flags(settings(), job(plan="chance"))


@pytest.mark.parametrize("plan", PLANS)
def test_every_method_has_flags(plan):
    assert flags.plan_flags(settings(), job(plan=plan)).startswith("--")


def test_the_size_of_an_optimal_plan_is_an_input_and_not_a_setting():
    assert "same" not in flags.plan_flags(settings(), job(plan="sized"))
    assert inputs.optimal_size(settings(), job(plan="sized")) == ["results/m/baselines/q4_k_m/model.gguf"]
    assert inputs.optimal_size(settings(), job(plan="best")) == []
    assert flags.size_flag(settings(), job(), SimpleNamespace(same_size="x.gguf")) == "--same-size-as x.gguf"
    assert flags.size_flag(settings(), job(), SimpleNamespace(same_size=[])) == ""


def test_a_plan_that_decides_no_step_on_text_reads_no_validation_text():
    assert inputs.validation_text(settings(), job(plan="sized")) == []
    assert inputs.validation_text(settings(), job(plan="best")) == ["results/m/validation.safetensors"]


def test_what_stands_beside_a_plan_belongs_to_its_method():
    beside = {plan: inputs.beside_plan(settings(), job(plan=plan), "config") for plan in ("w4", "pruned", "best")}
    assert beside == {
        "w4": ["results/m/plans/w4/config.smoothing.safetensors"],
        "pruned": ["results/m/plans/pruned/compressed"],
        "best": [],
    }


def test_only_formats_that_use_importance_ask_for_it():
    assert inputs.search_importance(settings(), job(plan="threshold")) == []
    assert inputs.search_importance(settings(), job(plan="typed")) == "results/m/layer_stats.safetensors"
    assert inputs.search_importance(settings(imatrix=False), job(plan="typed")) == []


def test_a_model_that_llama_cpp_does_not_know_has_no_files_of_it():
    without = settings(models={"m": {**MODEL, "runtimes": []}})
    assert targets.artifacts(without) == targets.runtime_files(without, "perplexity.json") == []
    assert targets.of_baselines(without, "model.gguf") == []
    assert inputs.compared_baselines(without, job()) == []
    assert not any("gguf" in file for file in inputs.compared_plans(without, job()))


def test_a_plan_has_a_folder_for_every_runtime_of_its_model():
    files = inputs.compared_plans(settings(), job())
    assert "results/m/plans/w4/gguf/model.gguf" in files and "results/m/plans/w4/gguf/report.json" in files
    assert targets.runtime_files(settings(), "speed.json")[0] == "results/m/plans/threshold/gguf/speed.json"
    assert inputs.artifact(settings(), job(plan="w4", runtime="gguf")) == ["results/m/plans/w4/gguf/model.gguf"]


def test_an_export_gets_the_settings_that_its_runtime_reads():
    made = flags.export_flags(settings(export={"match": "distortion"}), job(plan="w4", runtime="gguf"))
    assert value(made, "--runtime") == "gguf" and value(made, "--match") == "distortion"
    assert value(made, "--plan-name") == "w4" and value(made, "--model-name") == "m"


@pytest.mark.parametrize("old", [False, True, "false"])
def test_the_old_name_of_runtimes_is_an_error_that_says_the_new_one(old):
    with pytest.raises(UserError) as caught:
        settings(models={"m": {**MODEL, "gguf": old}})
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("SETTINGS-RENAMED", "models.m.gguf")
    assert "runtimes" in problem.hint and "[gguf] for true, [] for false" in problem.hint


def test_a_runtime_that_is_not_known_is_named_with_the_nearest():
    with pytest.raises(UserError, match="gguf"):
        settings(models={"m": {**MODEL, "runtimes": ["ggfu"]}})


def test_a_model_id_is_downloaded_unless_a_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub = settings(models={"m": {**MODEL, "path": "somebody/a-model"}})
    assert inputs.model_files(hub, job()) == ["results/m/download.json"]
    (tmp_path / "somebody/a-model").mkdir(parents=True)
    assert inputs.model_files(hub, job()) == ["somebody/a-model/config.json"]


def test_memory_and_time_grow_with_the_weights_and_the_attempt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo/model").mkdir(parents=True)
    memory = (resources.model_mem_mb, resources.runtime_mem_mb, resources.whole_mem_mb, resources.sparsegpt_mem_mb)
    small = [function(settings(), job(), 1) for function in memory]
    with open(tmp_path / "demo/model/model.safetensors", "wb") as file:
        file.truncate(4 << 30)
    large = [function(settings(), job(), 1) for function in memory]
    again = [function(settings(), job(), 2) for function in memory]
    assert all(a < b < c for a, b, c in zip(small, large, again, strict=True))
    limit = resources.time_limit(settings(), 2, 5)
    assert limit(job(), 1) == 120 + int(5 * 4096 / 1000) and limit(job(), 2) > limit(job(), 1)


def priced(metric: str, anchors: int | None, *plans: str, **table) -> str:
    """The words of the metric among the sensitivity flags of some plans, and whether memory for KL is asked for."""
    table = {"metric": metric, "anchors": anchors, "palette": PALETTE, **table}
    made = settings(plans={plan: PLANS[plan] for plan in plans}, sensitivity=table)
    found = words(flags.sensitivity_flags(made, job()))
    assert ("--draws" in found) == (found[found.index("--metric") + 1] == "gradient")
    assert bool(flags.memory_flag(made, job(), None)) == made.has_kld
    return found[found.index("--metric") + 1]


def test_kl_comes_from_gradients_where_a_plan_needs_it_and_nothing_is_measured():
    assert priced("auto", None, "best") == "gradient"
    assert priced("auto", None, "w4", embeddings=["q8_0"]) == "gradient"
    assert priced("auto", None, "w4") == "measured"
    assert priced("auto", 2, "best") == "measured"
    assert priced("gradient", 2, "best") == "gradient"
    assert priced("measured", 2, "best") == "measured"


def test_measuring_asks_for_the_memory_that_the_settings_allow():
    plain = resources.model_mem_mb(settings(), job(), 1)
    assert resources.sensitivity_mem_mb(settings(), job(), 1) == plain + 4_000_000_000 // 2**20


# ------------------------------------------------------------------------------------------------------------- rounding


def rounded(**changes):
    plans = {
        **PLANS,
        "fed": {"method": "random", "rounding": "feedback"},
        "tuned": {"method": "genetic", "rounding": "tuned"},
    }
    return settings(**{"plans": plans, **changes})


def test_a_plan_that_does_not_say_how_it_is_rounded_is_rounded_by_the_default():
    assert {rounded().rounding_of(plan) for plan in PLANS} == {"nearest"}
    by_default = rounded(rounding={"default": "tuned"})
    assert by_default.rounding_of("best") == "tuned" and by_default.rounding_of("fed") == "feedback"


def test_a_sparsegpt_plan_has_no_codes_left_to_choose():
    assert rounded(rounding={"default": "feedback"}).rounding_of("pruned") == "nearest"


def test_a_plan_may_stay_at_nearest_where_the_default_is_another():
    plans = {"plain": {"method": "random", "rounding": "nearest"}}
    assert inputs.used_plan(settings(plans=plans, rounding={"default": "feedback"}), job(plan="plain")).endswith(
        "plain/plan.json"
    )


def test_a_rounded_plan_is_scored_and_exported_with_its_codes_and_its_smoothing():
    assert inputs.used_plan(rounded(), job(plan="best")) == "results/m/plans/best/plan.json"
    assert inputs.used_plan(rounded(), job(plan="tuned")) == "results/m/plans/tuned/rounding/plan.json"
    assert inputs.beside_used_plan(rounded(), job(plan="fed")) == ["results/m/plans/fed/rounding/rounded"]
    assert inputs.beside_used_plan(rounded(), job(plan="tuned")) == [
        "results/m/plans/tuned/rounding/plan.smoothing.safetensors",
        "results/m/plans/tuned/rounding/rounded",
    ]
    assert inputs.beside_used_plan(rounded(), job(plan="w4")) == inputs.beside_plan(rounded(), job(plan="w4"), "plan")


def test_how_a_plan_is_rounded_is_no_setting_of_its_search():
    assert "rounding" not in flags.plan_flags(rounded(), job(plan="fed"))
    made = flags.rounding_flags(rounded(), job(plan="fed"))
    assert value(made, "--rounding") == "feedback" and value(made, "--descents") == "2" and "--steps" not in made
    assert value(flags.rounding_flags(rounded(rounding={"steps": 9}), job(plan="tuned")), "--steps") == "9"


def test_only_plans_that_are_not_rounded_to_nearest_have_a_step_for_it():
    assert targets.rounded_plans(rounded(), ("random", "optimal")) == ["fed"]
    assert targets.rounded_plans(rounded(rounding={"default": "feedback"}), ("genetic",)) == ["w4", "tuned"]
    assert "results/m/plans/fed/rounding/rounding.tsv" in inputs.compared_plans(rounded(), job())


def test_tuning_asks_for_more_memory_than_feedback():
    fed, tuned = (resources.rounding_mem_mb(rounded(), job(plan=plan), 1) for plan in ("fed", "tuned"))
    assert resources.sparsegpt_mem_mb(rounded(), job(), 1) == fed < tuned


def test_rounding_reads_no_text_but_that_of_calibration():
    rule = (ROOT / "rules" / "rounding.smk").read_text()
    assert "results/{model}/calibration.safetensors" in rule
    assert "evaluation" not in rule and "validation" not in rule
