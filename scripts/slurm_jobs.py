"""List, await or cancel the jobs that a run of the workflow in this folder has in SLURM's queue.

After Snakemake was killed its jobs go on. Await them (what they finish counts) or cancel them, then `snakemake --unlock` and start again.

For example:

    python scripts/slurm_jobs.py --wait
"""

from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_folder
from bitplan.cli.parser import parser, run


def main(args) -> None:
    """List the jobs, await or cancel them."""
    from bitplan.workflow.slurm.queue import await_jobs, cancel_jobs, jobs_of

    if args.wait:
        await_jobs(args.directory)
    elif args.cancel:
        cancel_jobs(args.directory)
    jobs = jobs_of(args.directory)
    print("\n".join(map(str, jobs)) or "no jobs in the queue")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument(
        "--directory",
        type=input_folder,
        default=Path(),
        help="folder in which Snakemake was started; this one by default",
    )
    choice = flags.add_mutually_exclusive_group()
    choice.add_argument("--wait", action="store_true", help="wait until all have ended")
    choice.add_argument("--cancel", action="store_true", help="cancel them")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
