"""What the comparison says of how plans were rounded."""

import json

from bitplan.report.comparison import comparison_table, rounding_notes
from bitplan.report.results import Entry, row_of

SCORES = {"ppl": 2.0, "ppl_error": 0.1, "kl_mean": 0.1, "kl_mean_error": 0.01, "top1_agreement": 0.9, "kl_p99": 0.5}
BITS = {"avg_bits": 4.0, "avg_bits_layers": 4.0, "target_avg_bits": 4.0, "target_missed_by": 0.0}


def compared(folder, name: str, rounding: str | None, why: str = "", tokens: int = 16) -> dict:
    """The row of a plan whose table of rounding has two layers, the second with a reason."""
    plan = folder / name
    (plan / "rounding").mkdir(parents=True)
    (plan / "bits.json").write_text(json.dumps(BITS))
    summary = {"method": "random", "cost": {"evaluations": 0, "block_forward_tokens": 0}}
    (plan / "plan.json").write_text(json.dumps({"summary": summary}))
    (plan / "perplexity.json").write_text(json.dumps({**SCORES, "rounding": rounding}))
    (plan / "rounding" / "rounding.tsv").write_text(
        f"layer\trounding\ttokens\tcolumns\twhy\na\tfeedback\t{tokens}\t8\t\nb\tnearest\t{tokens}\t16\t{why}\n"
    )
    return row_of(Entry(name, plan, True), 1000, None)


def test_a_row_says_how_its_plan_was_rounded_and_not_how_an_earlier_one_was(tmp_path):
    plain, fed = compared(tmp_path, "plain", None, "left over"), compared(tmp_path, "fed", "feedback")
    assert (plain["rounding"], plain["rounded_to_nearest"]) == ("nearest", None)
    assert (fed["rounding"], fed["rounded_to_nearest"]) == ("feedback", 0)
    lines = comparison_table([plain, fed]).text().splitlines()
    assert lines[0].split()[:2] == ["plan", "rounding"]
    assert sorted(line.split()[1] for line in lines[1:3]) == ["feedback", "nearest"]
    assert rounding_notes([plain, fed]) == []


def test_layers_that_were_rounded_to_nearest_instead_are_counted_below_the_table(tmp_path):
    rows = [compared(tmp_path, "fed", "feedback", "no token reached it")]
    assert rows[0]["rounded_to_nearest"] == 1
    assert "fed: 1 layers are rounded to nearest" in rounding_notes(rows)[0]


def test_layers_that_were_rounded_on_fewer_tokens_than_columns_are_counted_too(tmp_path):
    rows = [compared(tmp_path, "fed", "feedback", tokens=15)]
    assert rows[0]["few_tokens"] == 1
    assert rounding_notes(rows) == [
        "fed: 1 layers are rounded on fewer tokens than columns: use more calibration windows."
    ]
