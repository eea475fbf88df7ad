"""The bundled model through every kind of step on SLURM: the same files as on one machine."""

from pathlib import Path

import pytest

from tests.slurm.runs import ClusterRun, make_folder, run_locally

SETTINGS = {
    "models": {
        "demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    },
    "plans": {
        "careful": {"method": "adaptive", "ppl_threshold": 0.05, "target_avg_bits": 8.0, "step_size": 1.0},
        "drawn": {"method": "random", "mxfp4_ratio": 0.5, "bf16_ratio": 0.1, "seed": 1},
        "evolved": {"method": "genetic", "target_compression": 0.75},
    },
    "calibration": {"length": 128, "sequences": 4},
    "evaluation": {"length": 128, "sequences": 8},
    "sensitivity": {"tokens": 256},
    "speed": {"max_tokens": 8, "repeats": 1, "warmup": 0},
}
# What is measured anew in each run, and so is never the same: speeds and the report that shows them, estimates, Snakemake's benchmarks (seconds
# and memory), and the record of when and by whom a file was made. A .pt is an archive that holds its own temporary name; no step reads it.
MEASURED = (
    "speed.json",
    "comparison.tsv",
    "comparison.json",
    "comparison.txt",
    "comparison.html",
    "comparison.svg",
    "estimate.json",
    "estimate.txt",
)


def results_of(folder: Path) -> dict[str, bytes]:
    """The files of a run that depend on settings and model alone."""
    files = [path for path in (folder / "results").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in MEASURED
        and path.parent.name != "benchmarks"
        and not path.name.endswith((".meta.json", ".pt"))
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("local") / "my models", SETTINGS)
    run_locally(folder, "gguf", "perplexity", "cards")
    return folder


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> ClusterRun:
    made = ClusterRun(cluster, make_folder(tmp_path_factory.mktemp("cluster") / "my models", SETTINGS))
    try:
        assert made.run() == 0, made.said[-3000:]
    finally:
        made.stop()
    return made


def test_results_are_byte_for_byte_those_of_a_local_run(finished, local):
    ours, wanted = results_of(finished.folder), results_of(local)
    assert ours.keys() == wanted.keys() and len(wanted) > 30
    assert [name for name in wanted if ours[name] != wanted[name]] == []


def test_speeds_and_the_comparison_are_made_on_the_cluster(finished):
    base = finished.folder / "results" / "demo"
    names = {line.split("\t")[0] for line in (base / "comparison.tsv").read_text().splitlines()[1:]}
    assert names == {"f16", "q4_k_m", *SETTINGS["plans"]}
    assert all((base / "plans" / plan / "gguf/speed.json").stat().st_size > 0 for plan in SETTINGS["plans"])


def test_every_step_but_the_cheap_ones_was_a_job(finished):
    submitted = finished.said.count("has been submitted with SLURM jobid")
    cheap = sum(
        finished.said.count(f"localrule {rule}:")
        for rule in ("model", "bits", "random_plan", "plan_card", "comparison")
    )
    total = finished.said.count("Finished jobid")
    assert cheap == 9 and submitted + cheap + 1 == total, "1 is the rule all"


def test_a_run_in_which_nothing_happened_says_nothing_of_jobs_that_ended_early(finished):
    assert "ended early" not in finished.said and "was away" not in finished.said


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.run() == 0 and "Nothing to be done" in finished.said
