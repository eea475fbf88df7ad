"""The workflow taken through a cluster as a person does it, in a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, wait_until

# The timings reserve a node for themselves; here they share one.
ONE_THREAD = ("plan_speed", "baseline_speed")
# So that a run that hangs ends some time: a step may wait for a look at its job, and for processors that others use as well.
MINUTES = 20


def make_folder(folder: Path, settings: dict) -> Path:
    """Return a folder with the bundled model, its texts, and settings as mine.yaml."""
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "demo", folder / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mine.yaml").write_text(json.dumps(settings))
    return folder


def _line(*arguments: str) -> list[str]:
    flags = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "mine.yaml", "--replace-workflow-config"]
    threads = ["--set-threads", *(f"{rule}=1" for rule in ONE_THREAD)]
    return ["snakemake", *flags, *arguments, *threads]


def run_locally(folder: Path, *targets: str) -> None:
    """Make targets in a folder without a cluster. Fails with the end of the output."""
    made = subprocess.run(_line(*targets, "--cores", "2"), cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]


@dataclass
class ClusterRun:
    """A Snakemake that gives its jobs to a cluster; what it says is in `said`."""

    cluster: Cluster
    folder: Path
    process: subprocess.Popen | None = None

    def start(self, *arguments: str) -> None:
        """Start Snakemake with the project's profile, at most three jobs at once."""
        line = _line(*arguments, "--workflow-profile", str(ROOT / "profiles" / "slurm"), "--jobs", "3")
        with (self.folder / "said.txt").open("ab") as out:
            self.process = subprocess.Popen(
                line, cwd=self.folder, env=self.cluster.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def said(self) -> str:
        """All that Snakemake has written so far, in each of its runs in this folder."""
        return (self.folder / "said.txt").read_text(errors="replace")

    def finish(self) -> int:
        """Return Snakemake's exit code. Raises `TimeoutExpired`."""
        assert self.process is not None
        return self.process.wait(timeout=60 * MINUTES)

    def run(self, *arguments: str) -> int:
        """Start Snakemake and return its exit code."""
        self.start(*arguments)
        return self.finish()

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of scripts/ in the folder."""
        line = [sys.executable, str(ROOT / "scripts" / name), *arguments]
        environment = self.cluster.environment
        return subprocess.run(line, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def await_step(self, rule: str) -> tuple[str, str]:
        """Return the number and the node of the job of a rule, once the step in it has begun to write its log."""
        log = f"logs/demo/{rule}.log"

        def begun() -> bool:
            assert self.process is not None and self.process.poll() is None, self.said[-3000:]
            return (self.folder / log).exists()

        wait_until(begun, 120, log)
        running = self.cluster.ask("squeue", "--noheader", "--states=running", "--format=%k %i %N").splitlines()
        jobs = [line.split()[1:] for line in running if line.startswith(f"rule_{rule}_")]
        assert len(jobs) == 1, running
        return jobs[0][0], jobs[0][1]

    def stop(self) -> None:
        """End Snakemake and its jobs if a failed test left them running: the next test has the same cluster."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, 9)
            self.process.wait()
        self.cluster.cancel_all()
