"""The whole workflow on a small model, as a person runs it, in a folder with a space in its name."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bitplan.demo.stories import text_of
from bitplan.runtimes.gguf.llama_runtime import opened
from tests import warm
from tests.conftest import ROOT

SETTINGS = {
    "models": {"small": {"path": "model", "calibration": "calibration.txt", "evaluation": "evaluation.txt"}},
    "plans": {
        "careful": {"method": "adaptive", "ppl_threshold": 0.05, "target_avg_bits": 8.0, "step_size": 1.0},
        "drawn": {"method": "random", "mxfp4_ratio": 0.5, "bf16_ratio": 0.1, "seed": 1},
    },
    "calibration": {"length": 128, "sequences": 4},
    "evaluation": {"length": 128, "sequences": 8},
    "speed": {"max_tokens": 8, "repeats": 1, "warmup": 0},
    "tasks": {"names": ["demo_memory"], "limit": 10},
}
PLAN = (
    "config.json",
    "plan.json",
    "bits.json",
    "perplexity.json",
    "gguf/perplexity.json",
    "gguf/model.gguf",
    "gguf/report.json",
    "gguf/speed.json",
    "tasks.json",
)


def run(folder: Path, *arguments: str, settings: str = "mine.yaml", **environment) -> subprocess.CompletedProcess[str]:
    line = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    line += ["--configfile", settings, "--replace-workflow-config", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, **environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, demo) -> Path:
    folder = tmp_path_factory.mktemp("run") / "my models"
    shutil.copytree(demo / "model", folder / "model")
    for text in ("calibration.txt", "evaluation.txt"):
        shutil.copy(demo / text, folder / text)
    (folder / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    made = run(folder)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
    return folder


def results(folder: Path) -> Path:
    return folder / "results" / "small"


def test_everything_the_design_names_is_made(finished):
    base = results(finished)
    for name in (
        "model.json",
        "layer_stats.tsv",
        "calibration.safetensors",
        "evaluation.safetensors",
        "comparison.tsv",
        "comparison.html",
    ):
        assert (base / name).stat().st_size > 0, name
    for plan in SETTINGS["plans"]:
        assert all((base / "plans" / plan / name).stat().st_size > 0 for name in PLAN)
    for baseline in ("f16", "q4_k_m"):
        assert all(
            (base / "baselines" / baseline / name).exists() for name in ("model.gguf", "perplexity.json", "speed.json")
        )


def test_a_second_run_has_nothing_to_do(finished):
    made = run(finished)
    assert "Nothing to be done" in made.stdout + made.stderr


def test_the_comparison_has_a_row_for_each_plan_and_baseline_and_agrees_with_the_files(finished):
    rows = {row["name"]: row for row in csv.DictReader((results(finished) / "comparison.tsv").open(), delimiter="\t")}
    assert set(rows) == {"careful", "drawn", "f16", "q4_k_m"}
    scores = json.loads((results(finished) / "plans/careful/gguf/perplexity.json").read_text())
    assert float(rows["careful"]["file_kl"]) == pytest.approx(scores["kl_mean"])
    assert float(rows["f16"]["file_kl"]) < 1e-5 < float(rows["q4_k_m"]["file_kl"])
    assert float(rows["careful"]["avg_bits"]) < 16 and int(rows["careful"]["search_evaluations"]) > 1


def test_the_adaptive_plan_holds_its_limit_on_the_calibration_text(finished):
    summary = json.loads((results(finished) / "plans/careful/plan.json").read_text())["summary"]
    assert summary["ppl_increase"] <= 0.05 and summary["base_ppl"] > 1


def test_the_three_figures_of_average_bits_belong_together(finished):
    plan = results(finished) / "plans/drawn"
    bits, report = (json.loads((plan / name).read_text()) for name in ("bits.json", "gguf/report.json"))
    assert bits["avg_bits_layers"] < bits["avg_bits"] and report["avg_bits_file"] == pytest.approx(
        bits["avg_bits"], rel=0.08
    )


def test_a_plans_file_talks_in_the_words_of_its_language(finished):
    known = set(text_of(1, 300_000).split())
    with opened(results(finished) / "plans/drawn/gguf/model.gguf", 128, 1) as runtime:
        tokens, _, _ = runtime.generate(runtime.tokenize("Near the mill lived"), 60)
        words = runtime.text_of(tokens).split()[1:-1]
    assert len(words) > 30 and sum(word in known for word in words) > 0.8 * len(words), words


def test_results_are_byte_for_byte_the_same_when_made_again(finished, tmp_path):
    folder = tmp_path / "again"
    folder.mkdir()
    for name in ("model", "calibration.txt", "evaluation.txt", "mine.yaml"):
        (folder / name).symlink_to(finished / name)
    # Another server: what hung on the order of a set of names would be other bytes.
    assert run(folder, "gguf", "perplexity", env=warm.environment(1)).returncode == 0
    same = (
        "layer_stats.tsv",
        "calibration.safetensors",
        "plans/careful/plan.json",
        "plans/careful/gguf/model.gguf",
        "plans/drawn/perplexity.json",
    )
    for name in same:
        assert (results(folder) / name).read_bytes() == (results(finished) / name).read_bytes(), name


def test_the_figure_is_an_image_with_every_plan_in_it(finished):
    figure = (results(finished) / "comparison.svg").read_text()
    assert figure.startswith("<?xml") and all(name in figure for name in ("careful", "drawn", "q4_k_m"))
    page = (results(finished) / "comparison.html").read_text()
    assert "<svg" in page and "careful" in page


def test_a_failed_step_shows_its_log_and_keeps_what_others_made(finished):
    # More bytes than tokens are needed, and fewer tokens: only the model's tokenizer knows.
    (finished / "short.txt").write_text((finished / "evaluation.txt").read_text()[:1_500])
    gone = {**SETTINGS["models"]["small"], "evaluation": "short.txt"}
    (finished / "broken.yaml").write_text(yaml.safe_dump(SETTINGS | {"models": {"gone": gone}}))
    made = run(finished, "results/gone/evaluation.safetensors", settings="broken.yaml")
    assert made.returncode == 1 and "error [TEXT-TOO-SHORT] models.gone.evaluation: " in made.stdout + made.stderr
    assert not (finished / "results/gone/evaluation.safetensors").exists()
    assert (results(finished) / "comparison.tsv").exists()


def test_what_a_described_model_cannot_give_is_refused_before_a_result_is_removed(finished):
    (finished / "brief.txt").write_text((finished / "evaluation.txt").read_text()[:1_500])
    small = {**SETTINGS["models"]["small"], "evaluation": "brief.txt"}
    low = {"method": "optimal", "target_avg_bits": 1.0}
    (finished / "low.yaml").write_text(yaml.safe_dump(SETTINGS | {"models": {"small": small}, "plans": {"low": low}}))
    made = run(finished, settings="low.yaml")
    told = made.stdout + made.stderr
    assert made.returncode == 1 and "[SEARCH-TARGET-OUT-OF-REACH] plans.low.target_avg_bits: " in told
    assert "[TEXT-TOO-SHORT] models.small.evaluation: brief.txt: has " in told and "Traceback" not in told
    assert all((results(finished) / name).exists() for name in ("model.json", "evaluation.safetensors"))


def test_a_plan_that_must_hold_its_target_and_does_not_stops_before_it_is_exported(finished):
    strict = {"method": "adaptive", "target_avg_bits": 5.7, "ppl_threshold": 0.001, "check": {"on_miss": "fail"}}
    (finished / "strict.yaml").write_text(yaml.safe_dump(SETTINGS | {"plans": {"strict": strict}}))
    made = run(finished, "gguf", settings="strict.yaml")
    assert made.returncode == 1 and "over its target of 5.7" in made.stdout + made.stderr
    assert not (results(finished) / "plans/strict/gguf/model.gguf").exists()
