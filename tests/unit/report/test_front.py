"""What a run ends with."""

from bitplan.report.front import summary_lines


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
