"""Every rule's command killed at random moments, and run again: no file is half-written, and the results are those of an undisturbed run.

Four rules by default, every one with BITPLAN_CRASHES=all (make test-crash).
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import warm
from tests.conftest import ROOT

SETTINGS = {
    "models": {"small": {"path": "model", "calibration": "calibration.txt", "evaluation": "evaluation.txt"}},
    "plans": {
        "careful": {"method": "adaptive", "ppl_threshold": 0.2, "target_avg_bits": 6.0, "step_size": 0.8},
        "drawn": {"method": "random", "mxfp4_ratio": 0.5, "bf16_ratio": 0.1, "seed": 1},
        "bred": {"method": "genetic", "target_compression": 0.75, "ga_pop": 6, "ga_gen": 3},
        "best": {"method": "optimal", "palette": ["q4_k", "q8_0"], "target_avg_bits": 6.0, "swaps": 3, "refine": True},
        "pruned": {"method": "sparsegpt", "target_avg_bits": [4.0], "bit_allocation_method": "budget"},
    },
    "studies": {},
    "baselines": ["f16", "q4_k_m_imatrix"],
    "calibration": {"length": 64, "sequences": 4},
    "validation": {"length": 64, "sequences": 8},
    "evaluation": {"length": 64, "sequences": 4},
    "sensitivity": {"tokens": 128, "anchors": 1, "palette": ["q4_k", "q8_0"], "embeddings": ["q8_0"]},
    "speed": {"max_tokens": 4, "repeats": 1, "warmup": 0},
    "tasks": {"names": ["demo_memory"], "limit": 4, "max_length": 64},
}
MODEL, REPORT = (
    ("model", "layer_stats", "evaluation", "validation", "base_gguf", "baseline_gguf", "sensitivity", "model_tasks"),
    ("baseline_perplexity", "baseline_speed", "comparison"),
)
SEARCHES = ("adaptive_plan", "random_plan", "genetic_plan", "optimal_plan", "sparsegpt_plan")
OF_PLANS = ("bits", "plan_card", "plan_gguf", "plan_perplexity", "plan_runtime_perplexity", "plan_speed", "plan_tasks")
EVERY_RULE = (*MODEL, *SEARCHES, *OF_PLANS, *REPORT)
ALL = os.environ.get("BITPLAN_CRASHES") == "all"
# A measurement that keeps passes, a search that keeps evaluations, one that keeps blocks, one that keeps nothing; and the files that they need.
RULES = EVERY_RULE if ALL else ("sensitivity", "adaptive_plan", "sparsegpt_plan", "random_plan")
SOME = ("sensitivity.tsv", *(f"plans/{plan}/plan.json" for plan in ("careful", "pruned", "drawn")))
TARGETS = [] if ALL else [f"results/small/{name}" for name in SOME]
KILLS = 10
# What is measured with a clock is other in every run, and so is a page that shows it.
TIMED = ("speed.json",)
# Names of what is written aside, of what is kept to go on from, and of what no rule reads.
UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\..+)?|\.bitplan-work-[a-z0-9_]{8}|\..+\.tmp|.+\.partial")


@dataclass(frozen=True)
class Job:
    """What Snakemake would run for a rule, before the command and as the command, and what that writes."""

    before: str
    words: list[str]
    log: str
    outputs: list[str]


def snakemake(folder: Path, *arguments: str) -> list[str]:
    line = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    return [*line, "--configfile", "mine.yaml", "--replace-workflow-config", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(snakemake(folder, *arguments), cwd=folder, capture_output=True, text=True, check=False)


def begun(folder: Path, demo: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(demo / "model")
    for text in ("calibration.txt", "evaluation.txt"):
        (folder / text).symlink_to(demo / text)
    (folder / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def jobs_of(told: str) -> dict[str, Job]:
    """The first job of each rule in what a dry run prints."""
    found: dict[str, Job] = {}
    for part in re.split(r"^(?:local)?rule ", told, flags=re.MULTILINE)[1:]:
        command, outputs = (
            re.search(r"^Shell command: (.*python .*)$", part, re.M),
            re.search(r"^    output: (.*)$", part, re.M),
        )
        if command:
            before, _, line = command[1].rpartition("; ")
            words, log = line.removeprefix("python ").removesuffix(" 2>&1").split(" > ")
            job = Job(before, shlex.split(words), log, outputs[1].split(", "))
            found.setdefault(part.split(":")[0], job)
    return found


@dataclass(frozen=True)
class Undisturbed:
    folder: Path
    jobs: dict[str, Job]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, demo) -> Undisturbed:
    """A run of the workflow that nothing disturbed, and the commands that it ran."""
    folder = begun(tmp_path_factory.mktemp("undisturbed") / "run", demo)
    dry = run(folder, "--dry-run", "--printshellcmds", *TARGETS)
    made = run(folder, *TARGETS)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
    return Undisturbed(folder, jobs_of(dry.stdout + dry.stderr))


def start(job: Job, folder: Path) -> warm.Running:
    """Begin as Snakemake does, without the outputs of a job that was killed, and without imports, so that most of its seconds are work that can be killed."""
    for output in job.outputs:
        remove(folder / output)
    if job.before:
        subprocess.run(job.before, shell=True, cwd=folder, check=True)
    words = [str((folder / job.words[0]).resolve()), *job.words[1:]]
    return warm.start(words, folder, folder / job.log)


def exit_code(running: warm.Running) -> int:
    """Wait for a command; return its exit code, or the number of the signal that ended it with a minus."""
    return os.waitstatus_to_exitcode(running.wait())


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of the files in a folder, by name; without the mark that Snakemake puts into folders."""
    if path.is_dir():
        files = (each for each in path.rglob("*") if each.is_file() and each.name != ".snakemake_timestamp")
        return {str(each.relative_to(path)): each.read_bytes() for each in files}
    return {"": path.read_bytes()}


def same(path: Path, wanted: Path) -> bool:
    if path.name in TIMED:
        made, undisturbed = (json.loads(each.read_text()) for each in (path, wanted))
        return made.keys() == undisturbed.keys() and made["models"].keys() == undisturbed["models"].keys()
    return contents(path) == contents(wanted)


def unfinished(folder: Path) -> set[str]:
    """The names of what is under way or kept to go on from."""
    return {path.name for path in folder.rglob("*") if UNFINISHED.fullmatch(path.name)}


def strangers(folder: Path, finished: Path) -> set[Path]:
    """The files that an undisturbed run has not made, and that are neither under way nor kept."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    known = {path.relative_to(finished) for path in finished.rglob("*") if path.is_file()}
    return {path for path in found - known if not any(UNFINISHED.fullmatch(part) for part in path.parts)}


def copied(finished: Path, folder: Path) -> Path:
    """A copy of a finished run; files are written aside and renamed, so that links stand for copies."""
    shutil.copytree(finished, folder, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_killed_rule_leaves_nothing_half_written_and_ends_in_the_same_bytes(rule, undisturbed, tmp_path):
    job, folder = undisturbed.jobs[rule], copied(undisturbed.folder, tmp_path / "run")
    log = folder / job.log

    def whole() -> float:
        began = time.monotonic()
        assert exit_code(start(job, folder)) == 0, log.read_text()[-2000:]
        for output in job.outputs:
            assert same(folder / output, undisturbed.folder / output), output
        return time.monotonic() - began

    seconds, moments, killed = whole(), random.Random(rule), 0
    for _ in range(4 * KILLS):
        if killed == KILLS:
            break
        running = start(job, folder)
        time.sleep(moments.uniform(0, seconds))
        # The command may have ended already, and so may its group.
        with_group(running.process, signal.SIGKILL)
        code = exit_code(running)
        assert code in (0, -signal.SIGKILL), log.read_text()[-2000:]
        killed += code != 0
        # A machine that has become faster ends the command before its moment.
        seconds *= 1.0 if code else 0.8
        for output in job.outputs:
            path = folder / output
            assert not path.exists() or same(path, undisturbed.folder / output), f"{output} is half-written"
        assert not strangers(folder / "results", undisturbed.folder / "results")
    assert killed == KILLS, "the moments did not fall into the run"
    whole()
    assert not unfinished(folder / "results")


def with_group(process: int, sent: signal.Signals) -> None:
    try:
        os.killpg(process, sent)
    except ProcessLookupError:
        return


def test_every_rule_with_a_command_is_in_the_table(undisturbed):
    assert set(RULES) <= set(undisturbed.jobs) and (not ALL or set(undisturbed.jobs) == set(EVERY_RULE))


@pytest.mark.slow
def test_a_killed_snakemake_goes_on_after_unlock_and_ends_in_the_same_bytes(undisturbed, demo, tmp_path):
    folder = begun(tmp_path / "run", demo)
    target = "results/small/plans/careful/plan.json"
    line = snakemake(folder, target)
    with subprocess.Popen(
        line,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not (folder / "logs/small/careful/search.log").exists():
            time.sleep(0.01)
        with_group(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    refused = run(folder, target)
    assert refused.returncode == 1 and "--unlock" in refused.stdout + refused.stderr
    assert run(folder, "--unlock").returncode == 0
    made = run(folder, target)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
    for output in (target, "results/small/layer_stats.tsv", "results/small/calibration.safetensors"):
        assert same(folder / output, undisturbed.folder / output), output
    assert not unfinished(folder / "results")


# --------------------------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def device(tmp_path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "device"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("this process may not mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only_is_told_and_costs_nothing_that_was_finished(
    undisturbed, demo, tmp_path, device
):
    folder = begun(tmp_path / "run", demo)
    (folder / "results").symlink_to(device)
    targets = [f"results/small/plans/{plan}/plan.json" for plan in ("drawn", "careful")]
    full = run(folder, *targets)
    assert full.returncode == 1 and "SYSTEM-DISK-FULL" in full.stdout + full.stderr
    finished = [name for name in ("model.json", "plans/drawn/plan.json") if same_if_there(folder, undisturbed, name)]
    assert finished == ["model.json", "plans/drawn/plan.json"] and unfinished(device) <= {"layer_stats.tsv.partial"}
    remount(device, "ro")
    refused = run(folder, *targets)
    assert refused.returncode == 1 and "Read-only file system" in refused.stdout + refused.stderr
    assert all(same_if_there(folder, undisturbed, name) for name in finished)
    remount(device, "rw,size=64m")
    made = run(folder, *targets)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
    assert "rule random_plan" not in made.stdout + made.stderr, "what was finished was made again"
    for target in targets:
        assert same(folder / target, undisturbed.folder / target), target
    assert not unfinished(device)


def same_if_there(folder: Path, undisturbed: Undisturbed, name: str) -> bool:
    path = folder / "results/small" / name
    return path.exists() and same(path, undisturbed.folder / "results/small" / name)
