"""The optimal search: paired tests, steps around a solution, races, and the whole search on a small model."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import score_plan
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan, average_bits, read_plan, uniform_plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.search.damage import PlanDamage
from bitplan.search.evaluations import Evaluations, facts_of, facts_of_text
from bitplan.search.optimal.candidates import chosen_table
from bitplan.search.optimal.paired import difference
from bitplan.search.optimal.refinement import RefinementSettings
from bitplan.search.optimal.run import OptimalSearch, OptimalSettings
from bitplan.sensitivity.table import SensitivityTable
from tests.families import TEXT, make_family

RNG = np.random.default_rng

# ------------------------------------------------------------------------------------------------------------ paired tests


def test_the_interval_is_students():
    # scipy.stats.ttest_rel of the same numbers gives the same interval.
    from scipy.stats import ttest_rel

    rng = RNG(0)
    first, second = rng.random(12), rng.random(12)
    made, wanted = difference(first, second), ttest_rel(first, second).confidence_interval(0.95)
    assert (made.low, made.high) == pytest.approx((wanted.low, wanted.high)) and made.windows == 12


def test_a_shift_of_all_windows_is_seen_through_their_noise_and_one_window_decides_nothing():
    noise = RNG(0).normal(size=20) * 100
    assert difference(noise - 1e-3, noise).lower and difference(noise + 1e-3, noise).low > 0
    alone = difference([1.0], [2.0])
    assert not alone.lower and (alone.low, alone.high) == (-math.inf, math.inf)


# ------------------------------------------------------------------------------------------------------------------ steps


# ------------------------------------------------------------------------------------------------------------------- refinement


# --------------------------------------------------------------------------------------------------------------- on a model


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> PreparedModel:
    checkpoint = Checkpoint.open(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))
    return PreparedModel(checkpoint, describe(checkpoint), "fp32")


PALETTE = ("q4_0", "q5_0", "q8_0")


@pytest.fixture(scope="module")
def measured(small) -> SensitivityTable:
    reference = make_reference(small.model, TEXT, 32, 6, "fp32")
    layers, weights = small.info.quantizable, QuantizedWeights()
    sizes = np.array([[uniform_bytes(small, layer.name, form) for form in PALETTE] for layer in layers])
    kld = np.array([[alone(small, layer.name, form, reference, weights) for form in PALETTE] for layer in layers])
    params = np.array([float(layer.params) for layer in layers])
    return SensitivityTable(tuple(layer.name for layer in layers), PALETTE, params, sizes, kld, ("",) * len(layers))


def uniform_bytes(model: PreparedModel, layer: str, form: str) -> float:
    plan = Plan({layer: uniform_plan(model.info, form).of(layer)})
    return (average_bits(plan, model.info).avg_bits * model.info.parameters - 16 * other(model, layer)) / 8


def other(model: PreparedModel, layer: str) -> int:
    return model.info.parameters - next(one.params for one in model.info.layers if one.name == layer)


def alone(model: PreparedModel, layer: str, form: str, reference, weights) -> float:
    plan = Plan({layer: uniform_plan(model.info, form).of(layer)})
    return float(score_plan(model.model, model.info, plan, reference, weights).kl.double().mean())


def search(small, measured, **how) -> OptimalSearch:
    text = {"calibration": make_reference(small.model, TEXT, 32, 6, "fp32")}
    text["fresh"] = make_reference(small.model, TEXT, 32, 8, "fp32", skip=6)
    return OptimalSearch(small, measured, OptimalSettings(PALETTE, **how), QuantizedWeights(), **text)


def test_a_plan_holds_its_average_bits_and_no_other_choice_of_the_table_has_less_damage(small, measured):
    made = search(small, measured, correct=False)
    for target in (13.5, 13.7, 13.9):
        plan, figures = made.run(made.budget(target))
        bits = average_bits(plan, small.info).avg_bits
        assert bits <= target + 1e-9 and figures["gap"] < 1e-4
        chosen = [PALETTE.index(plan.of(name).wq) for name in measured.layers]
        assert sum(measured.kld[i, k] for i, k in enumerate(chosen)) == pytest.approx(figures["kld_predicted"])
        # Nothing that is swapped between two layers at this size is better.
        for i, j in product(range(len(chosen)), repeat=2):
            tried = list(chosen)
            tried[i], tried[j] = min(2, tried[i] + 1), max(0, tried[j] - 1)
            size = sum(measured.size[k, option] for k, option in enumerate(tried))
            if size <= made.budget(target):
                damage = sum(measured.kld[k, option] for k, option in enumerate(tried))
                assert damage >= figures["kld_predicted"] * (1 - 1e-9)


def test_a_target_out_of_reach_is_refused_with_the_range(small, measured):
    with pytest.raises(UserError, match="SEARCH-TARGET-OUT-OF-REACH"):
        search(small, measured, correct=False).budget(3.0)


def test_correction_and_race_keep_the_size_and_say_what_they_gained_and_cost(small, measured):
    made = search(small, measured, refine=True, swaps=6, refinement_settings=RefinementSettings(4, 2))
    budget = made.budget(13.7)
    plan, figures = made.run(budget)
    assert average_bits(plan, small.info).avg_bits <= 13.7 + 1e-9
    assert [stage["stage"] for stage in figures["stages"]] == ["correction", "refine"]
    for stage in figures["stages"]:
        low, high = stage["interval"]
        assert low <= stage["kl_change"] <= high and stage["kept"] == (high < 0) and stage["windows"] == 4
        assert stage["evaluations"] > 0 and stage["block_forward_tokens"] > 0
    correction = figures["stages"][0]
    assert correction["tried"] == (correction["could_gain"] > correction["least_shown"])
    assert correction["tried"] or (correction["kl_change"] == 0 and correction["evaluations"] == 3)
    cost = figures["cost"]
    assert cost["block_forward_tokens"] == sum(stage["block_forward_tokens"] for stage in figures["stages"])


def test_a_step_that_fresh_text_does_not_confirm_is_not_taken(small, measured):
    made = search(small, measured)
    worst = np.zeros(len(measured.layers), dtype=np.intp)
    best = np.full(len(measured.layers), 2, dtype=np.intp)
    seen = PlanDamage(small, made.calibration, made.weights, made._plan_of)
    kept, stage = made._decided("worse", lambda *_: worst, best, math.inf, seen, made.fresh)
    assert (kept == best).all() and not stage.kept and stage.change.low > 0
    kept, stage = made._decided("better", lambda *_: best, worst, math.inf, seen, made.fresh)
    assert (kept == best).all() and stage.kept


def test_windows_are_measured_once_and_in_parts_as_at_once(small, measured):
    made = search(small, measured)
    counting, whole = (PlanDamage(small, made.fresh, made.weights, made._plan_of) for _ in range(2))
    choice = np.zeros(len(measured.layers), dtype=np.intp)
    parts = [counting.by_window(choice, n) for n in (2, 4, 4, 8)]
    np.testing.assert_allclose(parts[-1], whole.by_window(choice), rtol=1e-6)
    assert counting.evaluations == 3 and [len(part) for part in parts] == [2, 4, 4, 8]


def test_a_search_killed_after_any_evaluation_ends_in_the_figures_of_one_that_was_not(small, measured, tmp_path):
    folder = tmp_path / "plan.json.partial"

    def pieces():
        files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path: path.read_bytes() for path in files if path.name != "of.json"}

    def found(keeping: bool = True):
        made = search(small, measured, refine=True, swaps=4, refinement_settings=RefinementSettings(4, 2))
        if keeping:
            facts = facts_of(small, made.weights) | {
                "texts": [facts_of_text(made.calibration), facts_of_text(made.fresh)]
            }
            made.kept = Evaluations.beside(tmp_path / "plan.json", facts)
        return made.run(made.budget(13.7))

    undisturbed = found(keeping=False)
    assert found() == undisturbed
    whole = pieces()
    assert len(whole) > 4
    for done in (1, len(whole) // 2, len(whole) - 1):
        for path in list(pieces())[done:]:
            path.unlink()
        assert found() == undisturbed and pieces() == whole


def test_steps_need_fresh_text(small, measured):
    with pytest.raises(UserError, match="OPTIMAL-NO-VALIDATION"):
        OptimalSearch(small, measured, OptimalSettings(PALETTE), QuantizedWeights())


def test_a_palette_that_was_not_measured_and_layers_that_are_absent_are_told_together(small, measured):
    short = replace(
        measured,
        layers=measured.layers[1:],
        **{key: getattr(measured, key)[1:] for key in ("params", "size", "kld", "categories")},
    )
    with pytest.raises(UserError) as told:
        chosen_table(short, ("q4_0", "q4_1"), small.info, "s.tsv")
    assert len(told.value.problems) == 2 and "q4_1" in str(told.value) and measured.layers[0] in str(told.value)


def test_groups_are_experts_for_gguf_types_and_fusion_groups_for_others(small):
    names = [layer.name for layer in small.info.quantizable]
    assert set(OptimalSettings(PALETTE).groups_of(small.info, names)) == {""}
    fused = OptimalSettings(("int4", "int8")).groups_of(small.info, names)
    assert len({group for group in fused if group}) == 4 and sum(group != "" for group in fused) == 10


def test_the_command_searches_several_targets_from_one_measurement(command, small, tmp_path):
    folder = small.checkpoint.folder
    how = ("--calibration", TEXT, "--length", 32, "--sequences", 6, "--palette", *PALETTE, "--swaps", 4)
    outputs = ("--output-config", tmp_path / "{target}/c.json", "--output-plan", tmp_path / "p-{target}.json")
    made = command("optimal_search.py", "--model", folder, "--target-avg-bits", 13.6, 13.8, *how, *outputs)
    assert made.stdout.count("none below") == 2 and (tmp_path / "p.sensitivity.tsv").exists()
    for target in ("13.6", "13.8"):
        plan = read_plan(tmp_path / f"p-{target}.json", small.info)
        assert average_bits(plan, small.info).avg_bits <= float(target) and plan.summary["method"] == "optimal"
        assert plan.layers == read_plan(tmp_path / target / "c.json", small.info).layers
    again = (
        "--sensitivity",
        tmp_path / "p.sensitivity.tsv",
        "--target-avg-bits",
        13.8,
        "--output-plan",
        tmp_path / "a.json",
    )
    command("optimal_search.py", "--model", folder, *how, *again)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "p-13.8.json").read_bytes()


def test_a_plan_of_a_files_size_makes_a_file_that_is_no_larger(command, small, measured, tmp_path):
    base = tmp_path / "base.gguf"
    convert(small.checkpoint, base)
    mixed = Plan(
        {
            layer.name: uniform_plan(small.info, PALETTE[i % 3]).of(layer.name)
            for i, layer in enumerate(small.info.quantizable)
        }
    )
    export_plan(base, tmp_path / "mixed.gguf", small.info, mixed)
    how = ("--calibration", TEXT, "--length", 32, "--sequences", 6, "--palette", *PALETTE, "--no-correct")
    outputs = ("--same-size-as", tmp_path / "mixed.gguf", "--output-plan", tmp_path / "p.json")
    command("optimal_search.py", "--model", small.checkpoint.folder, *how, *outputs)
    export_plan(base, tmp_path / "o.gguf", small.info, read_plan(tmp_path / "p.json", small.info))
    sizes = [(tmp_path / name).stat().st_size for name in ("o.gguf", "mixed.gguf")]
    assert 0.98 * sizes[1] < sizes[0] <= sizes[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--target-avg-bits, --same-size-as or --max-size: exactly one"),
        (("--max-size", "1MB", "--output-plan", "{tmp}/p.json"), "Give --runtimes"),
        (("--target-avg-bits", "10", "11", "--output-plan", "{tmp}/p.json"), "{target}"),
        (("--target-avg-bits", "10"), "--output-plan"),
        (("--target-avg-bits", "10", "--output-plan", "{tmp}/p.json", "--palette", "q9"), "q9"),
        (("--target-avg-bits", "2", "--output-plan", "{tmp}/p.json", "--palette", "q4_0"), "The palette allows"),
        (("--target-avg-bits", "10", "--output-plan", "{tmp}/p.json"), "The palette allows 13."),
    ],
)
def test_flags_that_make_no_sense_are_refused(words, told, command, small, tmp_path):
    filled = [word.replace("{tmp}", str(tmp_path)) for word in words]
    how = ("--calibration", TEXT, "--length", 32, "--sequences", 4)
    made = command("optimal_search.py", "--model", small.checkpoint.folder, *how, *filled, ok=False)
    assert told in made.stderr and "Traceback" not in made.stderr and made.returncode == 2
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) in (
        "[]",
        '["p.sensitivity.tsv"]',
        '["p.sensitivity.smoothing.safetensors", "p.sensitivity.tsv"]',
    )
