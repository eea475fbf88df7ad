"""A process that tells which jobs Snakemake would run in a folder, many times over: `python pending_jobs.py FOLDER`.

Each line it reads, `pending` or `everything`, is answered with one line of JSON: all jobs of the folder as it is now, each as `model/rule@name`,
those that would run (or all, asked for everything), and the files that these write. Snakemake itself decides, by what it recorded of the finished jobs;
only starting it and importing the library, which take ten times as long as deciding, are done once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from snakemake.api import SnakemakeApi
from snakemake.cli import parse_size_in_bytes
from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

TARGETS = frozenset({"all", "studies"})
NAMES = ("plan", "baseline", "study", "scatteritem")


def forget_edited_code_(folder: Path, seen: dict[Path, int]) -> None:
    """Make the library read its own files again where one has changed since it was last asked."""
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "scripts").rglob("*.py")}
    if seen and seen != stamps:
        from bitplan.workflow import code_versions as versions

        for cached in filter(lambda value: hasattr(value, "cache_clear"), vars(versions).values()):
            cached.cache_clear()
    seen.clear()
    seen.update(stamps)


def compared_size(folder: Path) -> int:
    """Return the bytes up to which files are compared by content, which Snakemake's command line takes from the default profile."""
    profile = yaml.safe_load((folder / "profiles" / "default" / "profile.yaml").read_text())
    return parse_size_in_bytes(profile["max-checksum-file-size"])


def job_name(job: Any) -> str:
    """Return a job as `model/rule@name`, where the name is that of its plan, baseline or study, or nothing."""
    values = dict(job.wildcards_dict)
    name = next((values[key] for key in NAMES if key in values), "")
    return f"{values.get('model', '')}/{job.rule.name}@{name}"


def jobs_of(folder: Path, everything: bool) -> dict[str, list[str]]:
    """Return the jobs behind the targets, those that would run, and the outputs of all."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        made = api.workflow(ResourceSettings(cores=1), snakefile=folder / "Snakefile", workdir=folder)
        settings = DAGSettings(targets=TARGETS, forceall=everything, max_checksum_file_size=compared_size(folder))
        made.dag(settings)
        workflow = made._workflow
        workflow.dag_settings = settings
        workflow._prepare_dag(forceall=everything, ignore_incomplete=True, lock_warn_only=True)
        workflow._build_dag()
        jobs = [job for job in workflow.dag.jobs if job.output]
        pending = [job for job in jobs if workflow.dag.reason(job)]
        return {
            "jobs": sorted(map(job_name, jobs)),
            "pending": sorted(map(job_name, pending)),
            "outputs": sorted(str(path) for job in pending for path in job.output),
        }


def answer(folder: Path, question: str, seen: dict[Path, int]) -> dict[str, Any]:
    try:
        forget_edited_code_(folder, seen)
        return jobs_of(folder, everything=question == "everything")
    except (Exception, SystemExit) as error:  # whatever Snakemake refuses is the answer: the test that asked shows it
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    folder, seen = Path(sys.argv[1]), {}
    # Snakemake and the workflow may print: what is answered goes where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(folder, line.strip(), seen)), file=answers, flush=True)


if __name__ == "__main__":
    main()
