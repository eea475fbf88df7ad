"""The rows of plans in their runtimes: the figures of each file, or that it was not scored here."""

import json

import pytest

from bitplan.core.errors import UserError
from bitplan.report.comparison import comparison_json
from bitplan.report.results import Entry
from bitplan.report.runtimes import runtime_rows, runtimes_table

SCORES = {
    **{"ppl": 7.25, "ppl_error": 0.1, "kl_mean": 0.0125, "kl_mean_error": 0.001},
    **{"kl_p99": 0.3, "top1_agreement": 0.95},
}


@pytest.fixture
def entries(tmp_path):
    """A plan with files of two runtimes, of which one was scored, and a baseline."""
    for runtime, size in (("gguf", 100), ("mlx", 200)):
        folder = tmp_path / "best" / runtime
        folder.mkdir(parents=True)
        report = {"avg_bits_file": 4.5, "file_bytes": size, "differences": 0}
        (folder / "report.json").write_text(json.dumps(report))
    (tmp_path / "best" / "gguf" / "perplexity.json").write_text(json.dumps(SCORES))
    return [Entry("best", tmp_path / "best", True), Entry("q4_k_m", tmp_path / "q4", False)]


def test_each_plan_has_a_row_in_each_runtime_and_one_that_is_not_scored_here_says_so(entries):
    rows = runtime_rows(entries, ["gguf", "mlx"], ["mlx"])
    assert [(row["name"], row["runtime"], row["scored_here"]) for row in rows] == [
        ("best", "gguf", True),
        ("best", "mlx", False),
    ]
    assert rows[0]["kl"] == 0.0125 and "kl" not in rows[1] and rows[1]["file_bytes"] == 200
    lines = runtimes_table(rows).text().splitlines()
    assert "0.012500" in lines[1] and "not scored here" in lines[2] and "0.9500" in lines[1]
    assert comparison_json([], rows)["runtimes"] == rows


def test_a_model_with_files_of_llama_cpp_alone_has_no_table_of_runtimes(entries):
    assert runtimes_table(runtime_rows(entries, ["gguf"], [])) is None and runtimes_table([]) is None


def test_a_result_that_is_missing_or_lacks_a_figure_is_named(entries):
    with pytest.raises(UserError, match="REPORT-NO-RESULT.*mlx/perplexity.json"):
        runtime_rows(entries, ["mlx"], [])
    (entries[0].folder / "gguf" / "perplexity.json").write_text(json.dumps({**SCORES} | {"kl_mean": 0}))
    runtime_rows(entries, ["gguf"], [])
    (entries[0].folder / "gguf" / "perplexity.json").write_text("{}")
    with pytest.raises(UserError, match="REPORT-NO-FIGURE.*lacks ppl"):
        runtime_rows(entries, ["gguf"], [])
