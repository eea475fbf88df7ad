"""The optimal allocation: against every plan there is, on known answers, and as a command."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.search.allocation.constraints import Constraints, rule_of
from bitplan.search.allocation.figure import draw_front, uniform_plans
from bitplan.search.allocation.problem import AVG_BITS, BYTES, KLD, Target, allocate, allocation_problem, reach
from bitplan.sensitivity.table import SensitivityTable, read_sensitivity_table

KNOWN = {3.0: 0.3233584, 3.5: 0.1336840, 4.0: 0.0675885, 4.5: 0.0327124, 5.0: 0.0165255, 6.0: 0.0055036}
ROUNDING = 1e-11


def table_of(size, kld, params=None) -> SensitivityTable:
    """A table of layers l0, l1 ... and formats f0, f1 ...; a damage of inf stands for a row that is not there."""
    kld = np.asarray(kld, dtype=float)
    size = np.where(np.isfinite(kld), np.broadcast_to(np.asarray(size, dtype=float), kld.shape), 0)
    layers, formats = (tuple(f"{word}{i}" for i in range(n)) for word, n in zip("lf", kld.shape, strict=True))
    params = np.full(len(layers), 100.0) if params is None else np.asarray(params, dtype=float)
    return SensitivityTable(layers, formats, params, size, kld, ("",) * len(layers))


def random_table(seed: int) -> SensitivityTable:
    """Up to 8 layers x 4 formats: sizes in whole bytes or not monotone at all, damages that rise with size, ties and zeros."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9), rng.integers(1, 5)
    params = rng.integers(1, 50, shape[0]) * 32.0
    size = [np.ceil(params[:, None] * np.sort(rng.random(shape[1])) * 2), rng.integers(0, 9, shape), rng.random(shape)][
        seed % 3
    ]
    kld = [rng.lognormal(-6, 3, shape), rng.integers(0, 4, shape) / 8, size / 100][seed // 3 % 3]
    lacking = (rng.random(shape) < 0.15) & (np.arange(shape[1]) != 0)
    return table_of(size, np.where(lacking, np.inf, kld), params)


def every_plan(table: SensitivityTable, groups=()) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and damage of every plan that a table and its groups allow."""
    plans = np.array(list(product(range(len(table.formats)), repeat=len(table.layers))))
    for group in set(groups) - {""}:
        members = [place for place, held in enumerate(groups) if held == group]
        plans = plans[(plans[:, members] == plans[:, members[:1]]).all(axis=1)]
    rows = np.arange(len(table.layers))
    size, kld = table.size[rows, plans].sum(axis=1), table.kld[rows, plans].sum(axis=1)
    return size[np.isfinite(kld)], kld[np.isfinite(kld)]


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "grouped"])
@pytest.mark.parametrize("seed", range(200))
def test_no_plan_is_better_than_the_one_found(seed, grouped):
    table, rng = random_table(seed), np.random.default_rng(1000 + seed)
    groups = tuple(rng.choice(["", "a", "b", "c"], len(table.layers))) if grouped else ()
    size, kld = every_plan(table, groups)
    limits = rng.choice(size) + 1e-3, rng.choice(kld) * (1 + ROUNDING)
    problem = allocation_problem(table, Constraints(groups))
    bits = 8 * limits[0] / table.params.sum()
    small, same, cheap = allocate(problem, [Target(BYTES, limits[0]), Target(AVG_BITS, bits), Target(KLD, limits[1])])
    least = kld[size <= limits[0]].min()
    assert small.kld == pytest.approx(least, rel=1e-10) and small.exact and small.gap == 0
    assert same.plan == small.plan and small.lower_bound == small.kld
    fewest = size[kld <= limits[1] * (1 + ROUNDING)].min()
    assert cheap.lower_bound == pytest.approx(fewest, rel=1e-10) and cheap.kld <= limits[1] * (1 + ROUNDING)
    for made in (small, cheap):
        chosen = [table.formats.index(form) for form in made.plan.values()]
        rows = np.arange(len(table.layers))
        assert list(made.plan) == list(table.layers) and made.bytes == round(table.size[rows, chosen].sum())
        assert made.kld == table.kld[rows, chosen].sum() and sum(made.counts.values()) == len(rows)
        of_group = {(group, form) for group, form in zip(groups, chosen, strict=bool(groups)) if group}
        assert len(of_group) == len(set(groups) - {""})


def test_the_answers_known_for_qwen3_4b_are_met_and_proven(assets):
    problem = allocation_problem(read_sensitivity_table(assets / "qwen3-4b-kld" / "sensitivity.csv"))
    made = allocate(problem, [Target(AVG_BITS, bits) for bits in (*KNOWN, 7.0, 8.0)])
    for each, known in zip(made, KNOWN.values(), strict=False):
        assert each.kld <= known and each.avg_bits_layers <= each.target.limit
    assert all(each.gap < 1e-4 and each.lower_bound <= each.kld for each in made)


def test_fewest_bytes_under_a_damage_and_least_damage_under_these_bytes_are_the_same_plan(assets):
    problem = allocation_problem(read_sensitivity_table(assets / "qwen3-4b-kld" / "sensitivity.csv"))
    (small,) = allocate(problem, [Target(KLD, 0.05)])
    assert small.kld <= 0.05 and small.lower_bound == small.bytes
    (back,) = allocate(problem, [Target(BYTES, small.bytes)])
    assert back.kld == small.kld
    (less,) = allocate(problem, [Target(BYTES, small.bytes - 1)])
    assert less.kld > 0.05


def test_an_option_that_is_larger_and_worse_is_never_chosen():
    problem = allocation_problem(table_of([[10, 20, 30]] * 2, [[1.0, 2.0, 0.5]] * 2))
    for made in allocate(problem, [Target(BYTES, limit) for limit in (20, 40, 50, 60)]):
        assert "f1" not in made.plan.values()


def test_layers_without_damage_take_the_fewest_bytes():
    problem = allocation_problem(table_of([10, 20, 40], [[0, 0, 0], [3, 2, 1], [0, 0, 0]]))
    (made,) = allocate(problem, [Target(BYTES, 10_000)])
    assert made.plan == {"l0": "f0", "l1": "f2", "l2": "f0"} and made.kld == 1 and made.bytes == 60


def test_a_table_without_any_damage_has_no_gap():
    (made,) = allocate(allocation_problem(table_of([10, 20], [[0, 0], [0, 0]])), [Target(BYTES, 30)])
    assert (made.kld, made.bytes, made.gap, made.exact) == (0, 20, 0, True)


def test_one_layer_and_one_format_are_a_plan():
    (made,) = allocate(allocation_problem(table_of([[10]], [[0.5]])), [Target(AVG_BITS, 0.8)])
    assert made.plan == {"l0": "f0"} and made.avg_bits_layers == 0.8 and made.counts == {"f0": 1}


def test_a_target_below_what_is_reached_is_refused_with_the_range():
    problem = allocation_problem(table_of([10, 20], [[2, 1]] * 3))
    targets = [Target(AVG_BITS, 0.7), Target(BYTES, 29), Target(KLD, 2.9), Target(BYTES, 30)]
    with pytest.raises(UserError) as caught:
        allocate(problem, targets)
    bits, size, kld = map(str, caught.value.problems)
    assert bits.startswith("[SEARCH-TARGET-OUT-OF-REACH] --target-avg-bits 0.7: ") and "0.8 to 1.6:" in bits
    assert "--target-bytes 29" in size and "30 to 60" in size and "--max-kld 2.9" in kld and "3 to 6" in kld


@pytest.mark.parametrize("seed", range(20))
def test_a_target_that_the_hint_names_is_met(seed):
    problem = allocation_problem(random_table(seed))
    targets = [Target(kind, 0) for kind in (AVG_BITS, BYTES, KLD)]
    for target, low in [(t, reach(problem)[t.kind][0]) for t in targets if reach(problem)[t.kind][0] > 0]:
        with pytest.raises(UserError) as caught:
            allocate(problem, [target])
        told = float(caught.value.problems[0].hint.split("allows ")[1].split(" ")[0])
        assert told == pytest.approx(low, rel=1e-3, abs=1) and allocate(problem, [Target(target.kind, told)])


def test_protection_groups_and_floors_hold_in_every_plan(assets):
    table = read_sensitivity_table(assets / "qwen3-4b-kld" / "sensitivity.csv")
    groups = [name.replace("attn_k", "attn_q") if "attn_k" in name or "attn_q" in name else "" for name in table.layers]
    rules = [rule_of(text, "--floor") for text in ("*attn_v*=q4_K", "blk.3.*=q5_K")]
    bound = Constraints(groups, [rule_of("token_embd.weight=q6_K", "--protect")], rules)
    bits = dict(zip(table.formats, (8.5, 6.5625, 5.5, 4.5, 3.4375, 2.625), strict=True))
    for made in allocate(allocation_problem(table, bound), [Target(AVG_BITS, bits) for bits in (3.5, 5.0)]):
        plan = made.plan
        assert plan["token_embd.weight"] == "q6_K"
        assert all(plan[f"blk.{i}.attn_q.weight"] == plan[f"blk.{i}.attn_k.weight"] for i in range(36))
        assert all(bits[plan[f"blk.{i}.attn_v.weight"]] >= 4.5 for i in range(36))
        assert all(bits[form] >= 5.5 for layer, form in plan.items() if layer.startswith("blk.3."))


def test_a_figure_shows_plans_and_formats_and_has_the_same_bytes_twice(tmp_path):
    problem = allocation_problem(table_of([10, 20, 40], [[3, 2, 1], [3, np.inf, 1]]))
    assert uniform_plans(problem) == {"f0": (0.8, 6), "f2": (3.2, 2)}
    made = allocate(problem, [Target(BYTES, limit) for limit in (20, 50, 80)])
    for name in ("one.svg", "two.svg"):
        draw_front(problem, made, tmp_path / name, "Optimal allocation")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text() and "f2" in text and "f1" not in text


# -- the command -----------------------------------------------------------------------------------------------------


def written_table(path: Path) -> Path:
    """Four layers in two formats; l3 is an embedding."""
    rows = [
        f"blk.{i}.{part},100,{form},{size},{kld},{part}"
        for i, part in enumerate(("q", "k", "v", "embd"))
        for form, size, kld in (("low", 50, 0.1 * (i + 1)), ("high", 100, 0.01))
    ]
    path.write_text("\n".join(["layer,params,format,bytes,kld,category", *rows]) + "\n")
    return path


def test_the_command_writes_the_plan_of_every_target(command, tmp_path):
    table, output, figure = written_table(tmp_path / "s.csv"), tmp_path / "front.json", tmp_path / "front.svg"
    targets = ("--target-avg-bits", 6, 8, "--max-kld", 0.5, "--target-bytes", 250)
    made = command(
        "allocate_bits.py",
        "--sensitivity",
        table,
        *targets,
        "--output",
        output,
        "--figure",
        figure,
        "--floor",
        "category:v=high",
    )
    front = json.loads(output.read_text())
    assert [next(iter(each["target"])) for each in front["allocations"]] == [AVG_BITS, AVG_BITS, BYTES, KLD]
    first = front["allocations"][0]
    assert first["plan"] == {"blk.0.q": "low", "blk.1.k": "low", "blk.2.v": "high", "blk.3.embd": "high"}
    assert (first["kld"], first["bytes"], first["avg_bits_layers"], first["counts"]) == (
        0.32,
        300,
        6,
        {"low": 2, "high": 2},
    )
    assert (first["lower_bound"], first["gap"], first["exact"]) == (0.32, 0, True)
    assert front["inputs"]["floor"] == ["--floor category:v=high"] and len(front["inputs"]["sensitivity_sha256"]) == 64
    assert front["layers"] == 4 and front["params"] == 400 and front["reach"][AVG_BITS] == [5, 8]
    assert (
        len(made.stdout.splitlines()) == 5 and "low 2, high 2" in made.stdout and figure.read_text().startswith("<?xml")
    )


def test_the_command_says_how_many_groups_its_patterns_make(command, tmp_path):
    table, output = written_table(tmp_path / "s.csv"), tmp_path / "front.json"
    arguments = ("--sensitivity", table, "--target-avg-bits", 6, "--output", output, "--groups", "blk.**.[qkv]")
    made = command("allocate_bits.py", *arguments, "--protect", "blk.?.embd")
    assert made.stdout.startswith("groups that share a format: 1, with 3 of 4 layers\n")
    plan = json.loads(output.read_text())["allocations"][0]["plan"]
    assert plan == {"blk.0.q": "low", "blk.1.k": "low", "blk.2.v": "low", "blk.3.embd": "high"}


def test_the_same_table_under_another_name_and_as_tsv_gives_the_same_plans(command, tmp_path):
    table = written_table(tmp_path / "s.csv")
    (tmp_path / "other.txt").write_text(table.read_text())
    (tmp_path / "t.tsv").write_text(table.read_text().replace(",", "\t"))
    files = []
    for name in ("s.csv", "other.txt", "t.tsv"):
        files.append(tmp_path / f"{name}.json")
        command("allocate_bits.py", "--sensitivity", tmp_path / name, "--target-avg-bits", 6, "--output", files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads(files[0].read_text())["allocations"] == json.loads(files[2].read_text())["allocations"]


def test_the_command_loads_neither_torch_nor_a_library_of_figures(tmp_path):
    import subprocess
    import sys

    from tests.conftest import SCRIPTS

    table = written_table(tmp_path / "s.csv")
    line = [
        SCRIPTS / "allocate_bits.py",
        "--sensitivity",
        table,
        "--target-avg-bits",
        "6",
        "--output",
        tmp_path / "f.json",
    ]
    made = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, line)], capture_output=True, text=True, check=True
    )
    loaded = {row.split("|")[-1].strip() for row in made.stderr.splitlines()}
    assert "numpy" in loaded and not loaded & {"torch", "matplotlib", "scipy", "pandas", "transformers"}
