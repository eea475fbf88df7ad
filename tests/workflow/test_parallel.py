"""Several jobs at once: what they are told of threads, what never runs beside what. Commands are stubs that note when they ran."""

import json
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from tests.conftest import ROOT, SCRIPTS
from tests.workflow.conftest import copy_workflow, snakemake

# These take --threads for measuring by themselves; in the workflow they read tables that other rules made.
TABLES_ONLY = {"genetic_plan", "random_plan"}
MODEL = "{path: demo/model, calibration: demo/calibration.txt, evaluation: demo/evaluation.txt}"
SETTINGS = (
    f"models: {{m: {MODEL}}}\nplans: {{a: {{method: adaptive}}, b: {{method: adaptive}}, c: {{method: random}}}}\n"
    "compute: {threads: 2}\n"
)
STUB = """
import json, os, sys, time
from pathlib import Path
started, arguments = time.monotonic(), sys.argv[1:]
time.sleep(0.3)
for name in arguments:
    if name.startswith("results/") and not Path(name).exists():
        Path(name).write_text("stub")
        # The files that a runtime writes beside its artifact.
        for beside in ("tensor_types.txt", "Modelfile") if name.endswith("gguf/model.gguf") else ():
            Path(name).with_name(beside).write_text("stub")
seen = dict(zip(arguments, arguments[1:]))
line = {
    "command": Path(sys.argv[0]).name, "threads": int(seen.get("--threads", 1)), "device": seen.get("--device", "cpu"),
    "environment": int(os.environ["OMP_NUM_THREADS"]), "started": started, "ended": time.monotonic(),
}
with open("jobs.jsonl", "a") as handle:
    handle.write(json.dumps(line) + "\\n")
"""


@dataclass(frozen=True)
class Job:
    """What a stub noted of itself; times on the machine's one clock."""

    command: str
    threads: int
    device: str
    environment: int
    started: float
    ended: float

    def beside(self, other: "Job") -> bool:
        return self.started < other.ended and other.started < self.ended


def jobs_of(folder: Path, cores: int, target: str, settings: str = SETTINGS) -> list[Job]:
    """The jobs of a run of stubs."""
    copy_workflow(folder)
    (folder / "config.yaml").write_text(settings)
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(STUB)
    made = snakemake(folder, "--cores", str(cores), target)
    assert made.returncode == 0, made.stdout + made.stderr
    return [Job(**json.loads(line)) for line in (folder / "jobs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_four_cores(tmp_path_factory) -> list[Job]:
    return jobs_of(tmp_path_factory.mktemp("four") / "run", 4, "all")


def pairs(jobs: list[Job]) -> list[tuple[Job, Job]]:
    return [(one, other) for one, other in combinations(jobs, 2) if one.beside(other)]


def test_jobs_run_beside_each_other_on_several_cores(on_four_cores):
    assert any(one.command == other.command == "perplexity.py" for one, other in pairs(on_four_cores))


def test_the_threads_of_jobs_that_run_at_once_are_no_more_than_the_cores(on_four_cores):
    for job in on_four_cores:
        at_its_start = [other for other in on_four_cores if other.started <= job.started < other.ended]
        assert sum(other.threads for other in at_its_start) <= 4


def test_a_job_is_told_as_many_threads_as_it_was_given(on_four_cores):
    assert all(job.threads == job.environment for job in on_four_cores)
    assert {job.threads for job in on_four_cores if job.command == "layer_stats.py"} == {2}


def test_what_a_run_has_changes_no_number_of_threads_that_a_result_depends_on(tmp_path):
    jobs = jobs_of(tmp_path / "run", 1, "perplexity")
    assert {job.threads for job in jobs if job.command in ("layer_stats.py", "adaptive_quantization_search.py")} == {2}
    assert {job.environment for job in jobs} == {1}


def test_nothing_runs_beside_a_timing(on_four_cores):
    timings = [job for job in on_four_cores if job.command == "compare_real_quant.py"]
    assert len(timings) == 5 and all(job.threads == 4 for job in timings)
    assert not [pair for pair in pairs(on_four_cores) if set(pair) & set(timings)]


def test_two_jobs_on_a_gpu_never_run_at_once(tmp_path):
    jobs = jobs_of(tmp_path / "run", 8, "perplexity", SETTINGS.replace("threads: 2", "device: cuda"))
    on_gpu = [job for job in jobs if job.device == "cuda" and job.command != "random_mixed_precision_quantization.py"]
    assert len(on_gpu) >= 7 and not pairs(on_gpu)
    assert pairs(jobs), "what needs no GPU still runs side by side"


def rules() -> dict[str, str]:
    """The text of each rule of the workflow by name."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    parts = re.split(r"^rule (\w+):$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_rule_hands_its_threads_to_a_command_that_takes_them():
    silent = []
    for name, text in rules().items():
        command = re.search(r'\*code\("(.+?)"\)', text)
        source = (SCRIPTS / command[1]).read_text() if command else ""
        takes = "add_compute_flags" in source or '"--threads"' in source
        told = r"threads: SETTINGS\.compute\.threads.*\{params\.flags\}|threads:.*--threads \{threads\}"
        if takes and name not in TABLES_ONLY and not re.search(told, text, re.S):
            silent.append(name)
    assert not silent
