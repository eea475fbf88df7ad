"""An estimate: work counted from a description and settings, priced by rates, and compared with what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitplan.config.completion import completed
from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.core.files import write_json
from bitplan.models.layers import Layer, ModelInfo
from bitplan.workflow.estimate.case import Case, Step
from bitplan.workflow.estimate.compare import benchmark_of, compared, rule_of
from bitplan.workflow.estimate.make import estimated_before
from bitplan.workflow.estimate.plan_steps import formats_of
from bitplan.workflow.estimate.rates import UNITS, Rates, rates_of
from bitplan.workflow.estimate.rows import duration, rows_of, span, total_of
from bitplan.workflow.estimate.steps import steps_of
from tests.conftest import ROOT

TEXTS = {"calibration": "c.txt", "evaluation": "e.txt"}
RATES = Rates("f", dict.fromkeys(UNITS, 1.0), 10**9, 1.0)


def case(blocks: int = 2, **changes) -> Case:
    layers = tuple(
        Layer(f"l.{block}.{name}", name, (256, 256), block, "", False)
        for block in range(blocks)
        for name in ("attn_q", "mlp_up")
    )
    config = {"models": {"m": {"path": "m", **TEXTS}}, "plans": {"p": {"method": "optimal", "same_size_as": "q4_k_m"}}}
    settings = parse_settings(completed({**config, **changes}, ROOT))
    info = ModelInfo("m", "f", "A", "llama", sum(layer.params for layer in layers), layers)
    return Case("m", info, settings, hidden=256, vocabulary=1000)


def work(made: Case, rule: str, unit: str) -> float:
    return sum(step.jobs * step.work.get(unit, 0.0) for step in steps_of(made) if step.rule == rule)


def test_the_work_of_a_walk_grows_with_blocks_and_tokens():
    once = work(case(), "evaluation", "forward")
    assert work(case(4), "evaluation", "forward") == 2 * once
    assert work(case(evaluation={"sequences": 64}), "evaluation", "forward") == 2 * once


def test_draws_cost_a_way_back_each():
    few, many = (work(case(sensitivity={"draws": draws}), "sensitivity", "draw") for draws in (4, 16))
    assert many == 4 * few > 0


def test_shards_share_the_table():
    made = case(sensitivity={"shards": 3})
    assert [step.jobs for step in steps_of(made) if step.rule == "sensitivity_shard"] == [3]
    assert work(made, "sensitivity_shard", "draw") == pytest.approx(work(case(), "sensitivity", "draw"))


def test_a_short_text_counts_with_the_windows_it_has():
    assert replace(case(), tokens={"evaluation": 1100}).of("evaluation") == 1024


def test_timings_run_alone_and_all_else_side_by_side():
    rows = rows_of([Step("a", 4, {"model": 10.0}), Step("b", 1, {"model": 5.0}, held=1e9, disk=7.0, alone=True)], RATES)
    total = total_of(rows, cores=2)
    assert (total["processor_seconds"], total["seconds"], total["memory"], total["disk"]) == (45.0, 25.0, 2e9, 7.0)


def test_what_may_come_besides_ends_after_a_time():
    more = Step("a", 2, {}, perhaps={"model": 100.0}, at_most=60.0)
    assert [row["perhaps"] for row in rows_of([more, replace(more, rule="b", at_most=500.0)], RATES)] == [120.0, 200.0]


def test_durations_are_in_words():
    assert [duration(each) for each in (8, 300, 9000, 400_000)] == ["8 s", "5 min", "2.5 h", "4.6 days"]


@pytest.mark.parametrize(
    ("size", "formats"),
    [({"target_avg_bits": 9}, {"q8_0"}), ({"same_size_as": "q4_k_m"}, {"q3_k", "q4_k", "q5_k"}), ({"target_avg_bits": 2}, {"q2_k", "q3_k"})],
)  # fmt: skip
def test_a_plan_is_expected_to_have_the_formats_near_its_bits(size, formats):
    plan = case(plans={"p": {"method": "optimal", **size}}).settings.plans["p"]
    assert set(formats_of(plan)) == formats and sum(formats_of(plan).values()) == pytest.approx(1)


@pytest.mark.parametrize(("least", "most", "words"), [(8, 8, "8 s"), (8, 45, "8 to 45 s"), (8, 300, "8 s to 5 min")])
def test_what_may_take_longer_is_a_span(least, most, words):
    assert span(least, most) == words


def test_a_step_within_its_span_is_estimated_right(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "model.tsv").write_text("s\tmax_rss\tcpu_time\n4\t100\t5.0\n")
    row = {"rule": "model", "jobs": 1, "seconds": 3.0, "memory": 1e9}
    spans = {0.0: 0.6, 1.0: 0.8, 4.0: 1.0}
    assert {more: next(compared({"steps": [{**row, "perhaps": more}]}, tmp_path))["factor"] for more in spans} == spans


def test_a_run_takes_as_long_as_the_steps_that_wait_for_each_other():
    rows = rows_of([Step("sensitivity", 1, {"model": 50.0}), Step("optimal_plan", 2, {"model": 20.0})], RATES)
    assert [total_of(rows, cores)["seconds"] for cores in (1, 64)] == [90.0, 70.0]


def test_a_file_without_rates_is_refused():
    with pytest.raises(UserError, match="ESTIMATE-INVALID"):
        rates_of({}, "estimate.json")


def test_rates_in_the_units_of_an_earlier_version_are_none(tmp_path):
    write_json(tmp_path / "estimate.json", {"rates": {"seconds_per": {"open": 1.0}}})
    write_json(tmp_path / "model.json", case().info.to_json())
    assert estimated_before(tmp_path, "m", case().settings, 2) is None


def test_an_estimate_is_compared_with_the_benchmark_files_of_its_rule(tmp_path):
    for folder in ("baselines/f16", "plans/a.b", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    names = {"f16.speed": "baseline_speed", "a.b.bits": "bits", "a.b.gguf": "plan_gguf", "gone.bits": None,
             "a.b.gguf.perplexity": "plan_runtime_perplexity", "layer_stats": "layer_stats"}  # fmt: skip
    assert {name: rule_of(tmp_path, f"{name}.tsv") for name in names} == names
    (tmp_path / "benchmarks" / "a.b.bits.tsv").write_text("s\tmax_rss\tcpu_time\n4\t100\t2.0\n")
    row = {"rule": "bits", "jobs": 2, "seconds": 6.0, "memory": 1e9}
    assert [each["factor"] for each in compared({"steps": [row]}, tmp_path)] == [1.5]


def test_what_a_command_says_of_itself_counts_where_snakemake_saw_less(tmp_path):
    for folder in ("plans/p", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "benchmarks" / "p.perplexity.tsv").write_text("s\tmax_rss\tcpu_time\n70\t100\t40.0\n")
    said = {"processor_seconds": 60.0, "peak_memory_bytes": 2e9}
    (tmp_path / "plans" / "p" / "perplexity.json.meta.json").write_text(json.dumps(said))
    row = {"rule": "plan_perplexity", "jobs": 1, "seconds": 60.0, "memory": 1e9}
    found = next(compared({"steps": [row]}, tmp_path))
    assert (found["factor"], found["resident"]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("output", "name"),
    [("model.json", "model"), ("base.gguf", "base_gguf"), ("baselines/f16/model.gguf", "f16.gguf"), ("plans/a/plan.json", "a.search"),
     ("plans/a/rounding/plan.json", "a.rounding"), ("plans/a/gguf/perplexity.json", "a.gguf.perplexity"),
     ("plans/a/gguf/model.gguf", "a.gguf"), ("plans/a.b/perplexity.json", "a.b.perplexity")],
)  # fmt: skip
def test_an_output_belongs_to_the_benchmark_file_of_its_step(output, name):
    assert benchmark_of(Path(output)) == name
