"""What a run ends with."""

import pytest

from bitplan.report.front import (
    OF_FILES,
    SAME_SIZE,
    dominated,
    ends_of_axis,
    front_of,
    headlines,
    summary_lines,
    with_best,
)


def row(name: str, bits: float, kl: float, method: str = "optimal") -> dict:
    return {"name": name, "method": method, "avg_bits_file": bits, "file_kl": kl, "file_kl_error": 1e-6}


ROWS = [
    row("f16", 16.0, 1e-7, "llama.cpp"),
    row("q4_k_m", 5.1, 0.0022, "llama.cpp"),
    row("optimal-q4", 5.0, 0.0011),
    row("random", 8.0, 0.0020, "random"),
]


def test_a_run_ends_with_the_headlines_and_the_rows_that_no_other_row_beats():
    lines = summary_lines(ROWS)
    assert lines[0] == "At q4_k_m's size: KL 0.0011 instead of 0.0022, with optimal-q4."
    assert [line.split()[0] for line in lines[2:]] == ["optimal-q4", "f16"]


def test_a_run_of_many_plans_ends_with_few_lines():
    many = [row(f"plan-{number}", 3 + number / 10, 0.1 / (number + 1)) for number in range(40)]
    assert len(summary_lines([*ROWS, *many])) <= 12


def test_a_plan_whose_metadata_alone_make_it_larger_has_its_recipes_size():
    recipe, plan = row("q4_k_m_imatrix", 7.604, 0.010452, "llama.cpp"), row("optimal-q4-k-m", 7.607, 0.004892)
    rows = [ROWS[0], row("q4_k_m", 7.604, 0.011968, "llama.cpp"), recipe, plan]
    assert headlines(rows, OF_FILES)[1] == ("At q4_k_m_imatrix's size: KL 0.0049 instead of 0.01, with optimal-q4-k-m.")
    assert [each["name"] for each in front_of(rows, OF_FILES)] == ["optimal-q4-k-m", "f16"]
    best = {each["name"]: each["best_at_size"] for each in with_best(rows, OF_FILES)}
    assert best == {
        **dict.fromkeys(("q4_k_m", "q4_k_m_imatrix"), "optimal-q4-k-m"),
        **dict.fromkeys(("f16", "optimal-q4-k-m"), "this one"),
    }
    assert not any(recipe["name"] in line for line in summary_lines(rows)[2:])


def test_a_larger_plan_than_that_is_not_of_the_recipes_size():
    recipe, plan = row("q4_k_m", 5.0, 0.002, "llama.cpp"), row("large", 5.01, 0.001)
    assert headlines([ROWS[0], recipe, plan], OF_FILES) == [
        "No plan is as small as q4_k_m; large has KL 0.001 instead of 0.002 at 1.002 times its size."
    ]
    assert dominated([recipe, plan], OF_FILES) == set()


@pytest.mark.parametrize("share", [0.0, 0.0005])
def test_two_equally_good_plans_of_one_size_hide_neither(share):
    rows = [row("a", 4.0, 0.1), row("b", 4.0 * (1 + share), 0.1)]
    assert dominated(rows, OF_FILES) == set() and dominated(rows[::-1], OF_FILES) == set()
    assert {each["best_at_size"] for each in with_best(rows, OF_FILES)} == {"this one"}


def test_an_equally_good_plan_that_is_smaller_by_more_hides_the_larger():
    assert dominated([row("a", 4.0, 0.1), row("b", 4.0 * 1.002, 0.1)], OF_FILES) == {"b"}


def test_plans_each_a_little_larger_than_the_one_before_do_not_all_hide_behind_the_largest():
    rows = [row(f"{number}", 4.0 * (1 + 0.0006 * number), 0.1 - 0.01 * number) for number in range(6)]
    front = front_of(rows, OF_FILES)
    assert [each["name"] for each in front] == ["1", "3", "5"]
    for hidden in (each for each in rows if each not in front):
        assert any(
            f["file_kl"] <= hidden["file_kl"] and f["avg_bits_file"] <= hidden["avg_bits_file"] * (1 + SAME_SIZE)
            for f in front
        )
    kls = [each["file_kl"] for each in front]
    assert kls == sorted(kls, reverse=True)


def test_an_axis_of_kl_ends_at_round_figures_beside_the_points():
    assert ends_of_axis([0.0005, 0.003]) == (0.0003, 0.005)
    assert ends_of_axis([0.0004]) == (0.0003, 0.0005)
    low, high = ends_of_axis([])
    assert 0 < low < high
