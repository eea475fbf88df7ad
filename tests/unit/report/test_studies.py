"""Studies: which plans a few lines of settings stand for, and the table and figure of their results."""

import json

import pytest

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.report.study import SIZE, cell_row, columns_of, draw_study, lines_of, study_table

MODEL = {"path": "m", "calibration": "c", "evaluation": "e"}
PLAN = {"method": "sparsegpt", "target_avg_bits": 3.0}


def settings(**study):
    return parse_settings(
        {"models": {"m": MODEL}, "plans": {"a": {"method": "random"}}, "studies": {"s": {"plan": PLAN, **study}}}
    )


def test_all_combinations_are_plans_of_their_own():
    made = settings(vary={"target_avg_bits": [2.5, 3.0], "bit_allocation_method": ["quantile", "budget"]})
    assert list(made.cells) == ["s.quantile-2.5", "s.quantile-3", "s.budget-2.5", "s.budget-3"]
    assert made.cells["s.budget-2.5"].target_avg_bits == [2.5]
    assert made.cells["s.quantile-3"].bit_allocation_method == "quantile"
    assert list(made.every_plan) == ["a", *made.cells] and list(made.plans) == ["a"]


def test_single_cells_and_labels_stand_beside_them():
    made = settings(
        vary={"weights": {"output": {"output": 1}, "both": {"output": 1, "hessian": 1}}},
        also={"gptq": {"bit_allocation_method": "uniform"}},
    )
    assert list(made.cells) == ["s.output", "s.both", "s.gptq"]
    assert made.cells["s.output"].weights == {"output": 1.0}
    assert made.cells["s.gptq"].bit_allocation_method == "uniform" and made.cells["s.gptq"].target_avg_bits == [3.0]


def test_any_method_can_be_varied():
    made = parse_settings(
        {
            "models": {"m": MODEL},
            "plans": {"a": {"method": "random"}},
            "studies": {"seeds": {"plan": {"method": "random"}, "vary": {"seed": [1, 2, 3]}}},
        }
    )
    assert [plan.seed for plan in made.cells.values()] == [1, 2, 3]


BAD = {
    "an unknown setting": ({"vary": {"sparsty": [0.5]}}, "sparsty"),
    "a value out of range": ({"vary": {"sparsity": [0.5, 2]}}, "s.*sparsity.*less than"),
    "nothing varied": ({}, "no cell"),
    "two cells of one name": ({"vary": {"sparsity": [0.5, "0.5"]}, "also": {"0.5": {}}}, "same name|two cells"),
    "mappings without labels": ({"vary": {"weights": [{"output": 1}]}}, "pattern|String should match"),
    "an axis that is not varied": ({"vary": {"sparsity": [0.5]}, "x": "seed"}, "x: seed is not varied"),
    "an unknown key": ({"vary": {"sparsity": [0.5]}, "vry": {}}, 'Did you mean "vary"'),
    "a name with a slash": ({"also": {"a/b": {}}}, "match pattern"),
}


@pytest.mark.parametrize("case", BAD)
def test_studies_that_are_no_plans_are_refused(case):
    study, told = BAD[case]
    with pytest.raises(UserError, match=told):
        settings(**study)


def test_a_plan_may_not_have_the_name_of_a_cell():
    with pytest.raises(UserError, match=r"s\.0\.5 is used twice"):
        parse_settings(
            {
                "models": {"m": MODEL},
                "plans": {"s.0.5": {"method": "random"}},
                "studies": {"s": {"plan": PLAN, "vary": {"sparsity": [0.5]}}},
            }
        )


def write_cell(folder, name: str, bits: float, kl: float | None) -> None:
    place = folder / "plans" / name
    place.mkdir(parents=True)
    (place / "bits.json").write_text(json.dumps({"avg_bits_layers": bits, "avg_bits": bits + 1}))
    scores = {"kl_mean": kl, "kl_mean_error": None if kl is None else kl / 10, "ppl": 3.0, "top1_agreement": 0.9}
    scores |= {"ppl_error": 0.1, "kl_p99": None if kl is None else kl * 9}
    (place / "perplexity.json").write_text(json.dumps(scores))


@pytest.fixture
def rows(tmp_path):
    cells = {
        "s.2-budget": ({"target_avg_bits": "2", "bit_allocation_method": "budget"}, 2.1, 0.3),
        "s.3-budget": ({"target_avg_bits": "3", "bit_allocation_method": "budget"}, 3.1, 0.1),
        "s.3-optimal": ({"target_avg_bits": "3", "bit_allocation_method": "optimal"}, 3.2, 0.2),
        "s.2-optimal": ({"target_avg_bits": "2", "bit_allocation_method": "optimal"}, 2.2, None),
        "s.gptq-2": ({"also": "gptq-2"}, 2.0, 0.4),
        "s.gptq-3": ({"also": "gptq-3"}, 3.0, 0.15),
    }
    for name, (_, bits, kl) in cells.items():
        write_cell(tmp_path, name, bits, kl)
    return [cell_row(tmp_path / "plans" / name, name, varied) for name, (varied, _, _) in cells.items()]


def test_the_figure_has_a_line_for_everything_that_is_not_along_it(rows):
    lines = lines_of(rows, SIZE)
    assert lines["budget"] == [(2.1, 0.3, pytest.approx(0.03)), (3.1, 0.1, pytest.approx(0.01))]
    assert [x for x, *_ in lines["gptq"]] == [2.0, 3.0] and [x for x, *_ in lines["optimal"]] == [3.2]
    by_setting = lines_of([row for row in rows if "also" not in row], "target_avg_bits")
    assert [x for x, *_ in by_setting["budget"]] == [2.0, 3.0]


def test_words_along_the_figure_stand_side_by_side(rows):
    lines = lines_of(rows, "bit_allocation_method")
    assert {x for x, *_ in lines["cells"]} == {"budget", "optimal"}


def test_the_table_is_sorted_by_damage_and_has_every_setting(rows, tmp_path):
    assert columns_of(rows)[:4] == ("cell", "target_avg_bits", "bit_allocation_method", "also")
    text = study_table(rows).text().splitlines()
    assert [line.split()[0] for line in text[1:7]] == [
        *("s.3-budget", "s.gptq-3", "s.3-optimal"),
        *("s.2-budget", "s.gptq-2", "s.2-optimal"),
    ]
    draw_study(rows, SIZE, tmp_path / "a.svg", "title")
    draw_study(rows, SIZE, tmp_path / "b.svg", "title")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("budget", "optimal", "gptq"))


def test_the_command_writes_table_text_and_figure(command, rows, tmp_path):
    cells = ("--cell", "s.2-budget", "target_avg_bits=2", "--cell", "s.3-budget", "target_avg_bits=3")
    outputs = ("--output", tmp_path / "o.tsv", "--text", tmp_path / "o.txt", "--figure", tmp_path / "o.svg")
    made = command("study_report.py", "--results", tmp_path, "--study", "s", *cells, "--x", SIZE, *outputs)
    assert "s.3-budget" in made.stdout and (tmp_path / "o.txt").read_text() == made.stdout.rstrip("\n") + "\n"
    assert (tmp_path / "o.tsv").read_text().startswith("cell\ttarget_avg_bits\tavg_bits_layers")
    refused = command(
        "study_report.py", "--results", tmp_path, "--study", "s", "--cell", "gone", "--x", SIZE, *outputs, ok=False
    )
    assert "gone" in refused.stderr and "Traceback" not in refused.stderr
