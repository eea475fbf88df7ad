# What the rules share: the settings, and adapters from Snakemake's wildcards, inputs and attempts to the functions of bitplan.workflow.
import gc
import os
import re
import sys
import time
from inspect import signature
from pathlib import Path

from snakemake.common import overwrite_function_params
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# The folder of this workflow, also where another workflow imports it as a module.
ROOT = Path(workflow.current_basedir).parent
sys.path.insert(0, str(ROOT / "scripts"))

from bitplan.core.errors import UserError
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.workflow import flags, inputs, resources, targets
from bitplan.workflow.code_versions import code_version, runtime_code, search_code
from bitplan.workflow.model_checks import check_described
from bitplan.workflow.session import (
    comparisons_since,
    held_out_from,
    results_without_records,
    settings_of,
    shared_text_warnings,
)
from bitplan.workflow.slurm.controller import ask_patiently_, times_away
from bitplan.workflow.slurm.endings import JobEndings
from bitplan.workflow.slurm.queue import refuse_running

# A graph of thousands of jobs is built of objects that stay: looking for garbage among them takes a ninth of the time.
gc.set_threshold(1_000_000, 50, 100)

STARTED = time.time()
ENDINGS = JobEndings()

try:
    SETTINGS = settings_of(config, workflow.configfiles, ROOT)
    HELD_OUT_FROM = held_out_from(SETTINGS)
    if workflow.is_main_process:
        check_described(SETTINGS)
except UserError as error:
    raise WorkflowError("\n".join(f"{problem}" for problem in error.problems))

# 1 where models are run on a GPU: the default profile lets one such job start at a time.
GPUS = int(SETTINGS.compute.device.startswith("cuda"))

if workflow.is_main_process:
    for warning in (
        *shared_text_warnings(HELD_OUT_FROM),
        *results_without_records(SETTINGS),
    ):
        logger.warning(warning)


def one_of(names):
    """Return a wildcard constraint that matches these names and no other."""
    return "|".join(map(re.escape, names)) or r"[^\s\S]"


wildcard_constraints:
    model=one_of(SETTINGS.models),
    plan=one_of(SETTINGS.every_plan),
    study=one_of(SETTINGS.studies),
    baseline=one_of(SETTINGS.baselines),
    runtime=one_of(RUNTIMES),


def known(function):
    """Return a function whose parameters Snakemake need not work out anew for every job, which takes a tenth of the time of a large graph."""
    overwrite_function_params(function, signature(function).parameters)
    return function


def script(name):
    """Return a function that gives the path of a command from the working directory."""
    path = os.path.relpath(ROOT / "scripts" / name)
    # Asking for the inputs keeps the path out of what Snakemake records: a checkout may be moved.
    return known(lambda wildcards, input: path)


def on_wildcards(function, *more):
    """Return a function of wildcards that calls one of the settings and wildcards."""
    return known(lambda wildcards: function(SETTINGS, wildcards, *more))


def on_input(function):
    """Return a function of wildcards and inputs that calls one of the settings, wildcards and inputs."""
    return known(lambda wildcards, input: function(SETTINGS, wildcards, input))


def on_attempt(function):
    """Return a function of wildcards and the attempt that calls one of the settings, wildcards and the attempt."""
    return known(lambda wildcards, attempt: function(SETTINGS, wildcards, attempt))


def time_limit(hours, minutes_per_gb):
    """Return a function that gives a job's time limit in minutes."""
    return known(resources.time_limit(SETTINGS, hours, minutes_per_gb))


def beside(function, *more):
    """Return a function that gives input files. Folders of weights are ancient: Snakemake cannot compare their content, and
    a file beside each has its digest."""

    return known(
        lambda wildcards: [
            ancient(path) if inputs.is_folder_with_digest(path) else path
            for path in function(SETTINGS, wildcards, *more)
        ]
    )


def whole_machine(wildcards):
    """Return every core of a run on one machine, so that nothing else runs beside a timing; elsewhere 1, and the profile says more."""
    return 1 if workflow.remote_exec else workflow.resource_settings.cores or 1


def all_cores(wildcards, input):
    """Return the cores of a run; asking for the inputs keeps them out of what Snakemake records."""
    return whole_machine(wildcards)


def on_slurm():
    """Return whether this process gives jobs to SLURM; a job itself does not."""
    executor = workflow.executor_plugin
    return (
        workflow.is_main_process and executor is not None and executor.name == "slurm"
    )


def start_on_slurm():
    """Prepare a run whose jobs go to SLURM: none of an earlier run may be left, and a controller that is away is asked again."""
    if not on_slurm():
        return
    try:
        refuse_running(Path.cwd())
    except UserError as error:
        raise WorkflowError(f"{error.problems[0]}")
    ask_patiently_(ROOT / "profiles" / "slurm" / "bin")
    logger.addHandler(ENDINGS)


def show_end(succeeded):
    """Print the tables that this run made, which jobs of SLURM's ended early, and for how long its controller was away."""
    tables = []
    if succeeded:
        tables = comparisons_since(SETTINGS, STARTED, Path(workflow.workdir_init))
    texts = filter(None, (*tables, ENDINGS.summary(succeeded), times_away()))
    print("".join(f"\n{text}\n" for text in texts), end="", file=sys.stderr)
