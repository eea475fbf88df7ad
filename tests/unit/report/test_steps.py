"""The table of steps and their times."""

from bitplan.report.steps import steps_table


def test_the_long_steps_are_shown_with_their_times(tmp_path):
    assert steps_table(tmp_path, ["a"]) is None
    (tmp_path / "benchmarks").mkdir()
    for name, seconds in (("layer_stats", "3.5"), ("a.search", "12.25"), ("gone.search", "1"), ("sensitivity", "-")):
        (tmp_path / f"benchmarks/{name}.tsv").write_text(f"s\tmax_rss\tcpu_time\n{seconds}\t100.4\t2\n")
    table = steps_table(tmp_path, ["a"])
    assert [(row["step"], row["seconds"]) for row in table.rows] == [
        ("a.search", 12.25),
        ("layer_stats", 3.5),
        ("sensitivity", None),
    ]
    assert "12.2" in table.text() and "105" in table.text()  # 100 MiB
