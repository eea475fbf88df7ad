"""A process that prints, as JSON, what a dry run would hand to a cluster: `python cluster_jobs.py SNAKEMAKE'S ARGUMENTS`.

One entry a job: its group (none where it is a single step), whether Snakemake's own machine runs it, its steps, and what it asks for on a cluster.
"""

import json
import os
import sys
from typing import Any

from snakemake.cli import args_to_api, parse_args
from snakemake.executors import dryrun
from snakemake.resources import GroupResources

ASKED = ("_cores", "mem_mb", "runtime", "gpu", "slurm_extra")


def step_name(job: Any) -> str:
    """Return a step as `rule model plan`."""
    return " ".join((job.rule.name, *map(str, job.wildcards_dict.values())))


def resources_of(job: Any) -> dict[str, int | str]:
    """Return what a job asks for. A dry run counts a group as if it ran here, where its levels add up; on a cluster the widest one counts."""
    if job.is_group():
        found = GroupResources.basic_layered(job.toposorted, job.global_resources, run_local=False)
    else:
        found = dict(job.resources.items())
    return {name: found[name] for name in ASKED if name in found}


def described(job: Any) -> dict[str, Any]:
    """Return a job's entry."""
    members = list(job.jobs) if job.is_group() else [job]
    return {
        "group": job.groupid if job.is_group() else None,
        "local": not job.is_group() and job.rule.name in job.dag.workflow._localrules,
        "steps": sorted(map(step_name, members)),
        "asks": resources_of(job),
    }


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    seen, run = [], dryrun.Executor.run_job

    def run_job(executor: Any, job: Any) -> None:
        seen.append(described(job))
        run(executor, job)

    dryrun.Executor.run_job = run_job
    parser, args = parse_args([*sys.argv[1:], "--dry-run", "--quiet", "all", "--cores", "10000"])
    if not args_to_api(args, parser):
        sys.exit(1)
    print(json.dumps(seen), file=answer, flush=True)


if __name__ == "__main__":
    main()
