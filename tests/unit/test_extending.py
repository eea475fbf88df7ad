"""docs/extending.md: its pieces run as they stand, and do what the text says."""

import re

import pytest

from bitplan.plans.plan import average_bits, read_plan
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The names that the document's pieces define, run one after another as one program."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    pieces = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program = "\n".join(pieces).replace('Path("results/mine")', f'Path("{tmp_path_factory.mktemp("results")}")')
    names: dict = {"__name__": "extending"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        exec(compile(program, "docs/extending.md", "exec"), names)
    return names


def test_a_users_format_is_searched_counted_and_used(made):
    plan, info = made["own_format"], made["model"].info
    assert set(plan.counts(info)) <= {"ternary", "mxfp6_e2m3", "bf16"} and len(plan.counts(info)) > 1
    assert plan.summary["ternary_threshold"] is not None or plan.summary["mxfp6_e2m3_threshold"] is not None
    assert plan.summary["ppl_increase"] <= 0.05
    assert plan.summary["avg_bits"] == average_bits(plan, info, made["formats"]).avg_bits
    assert made["ternary"].bits_per_value() == 2.25
    assert any(step["layers"].get("ternary") for step in plan.summary["search_history"])


def test_a_users_figure_is_what_the_search_limits(made):
    summary = made["own_measure"].summary
    assert summary["measure"] == "perplexity of the worst window" and summary["ppl_increase"] <= 0.05
    again = made["worst_window"](made["own_measure"])
    assert again == pytest.approx(summary["ppl"], rel=1e-6)


def test_a_users_strategy_decides_what_is_tried(made):
    plan, settings = made["own_strategy"], made["settings"]
    assert plan.summary["ppl_increase"] <= settings.ppl_threshold
    first = [step["threshold"] for step in plan.summary["search_history"] if step["stage"] == "mxfp4"]
    highest = max(made["alphas"].values())
    assert first[0] == pytest.approx(highest - settings.step_size)


def test_the_written_files_are_plans(made):
    info = made["model"].info
    for name in ("config.json", "plan.json"):
        assert read_plan(made["folder"] / name, info).layers == made["own_strategy"].layers


def test_a_subclass_may_override_the_evaluation(made):
    class Own(made["AdaptiveQuantizationSearch"]):
        def evaluate_ppl(self, plan):
            return 100.0 + sum(layer.quantized for layer in plan.layers.values())

    found = Own(made["model"].info, made["alphas"], lambda plan: 0.0, made["settings"]).run()
    assert found.summary["base_ppl"] == 100 and sum(found.counts(made["model"].info).values()) == 28
    assert sum(layer.quantized for layer in found.layers.values()) <= 5
