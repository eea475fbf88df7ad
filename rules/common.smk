# Everything that rules compute: settings, flags, names of files, resources. No rule and no other file defines a function.
import gc
import os
import re
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from bitplan.core.errors import Problem, UserError
from bitplan.formats.facts import weighs_columns
from bitplan.models.hub.download import looks_like_id
from bitplan.models.checkpoint_files import PARTS, matching
from bitplan.config.settings import (
    IMATRIX_SUFFIX,
    check_duplicate_keys,
    cli_flags,
    parse_settings,
)
from bitplan.core.sizes import bytes_of
from bitplan.workflow.slurm.controller import ask_patiently_, times_away
from bitplan.workflow.slurm.endings import JobEndings
from bitplan.workflow.slurm.queue import refuse_running
from bitplan.workflow.code_versions import code_versions

# A graph of thousands of jobs is built of objects that stay: looking for garbage among them takes a ninth of the time.
gc.set_threshold(200_000, 50, 100)

NOT_A_FLAG = {"method", "check"}
GIB_MB = 1024
STARTED = time.time()
ENDINGS = JobEndings()


def check_revisions(settings):
    """Raise `UserError` for a revision of a model that is a folder here."""
    what = "is for a model on the model hub, and its path is a folder here"
    folders = [
        name
        for name, model in settings.models.items()
        if model.revision is not None and Path(model.path).exists()
    ]
    if folders:
        raise UserError(Problem(f"models.{name}.revision", what) for name in folders)


def checked_settings():
    """Return the validated settings; every problem is one line, and none is a traceback."""
    try:
        for path in workflow.configfiles:
            check_duplicate_keys(Path(path))
        settings = parse_settings(config)
        check_revisions(settings)
        return settings
    except UserError as error:
        raise WorkflowError("\n".join(f"{problem}" for problem in error.problems))


SETTINGS = checked_settings()
# 1 where models are run on a GPU: the default profile lets one such job start at a time.
GPUS = int(SETTINGS.compute.device.startswith("cuda"))


def warn_of_results_without_records():
    """Say when there are results and nothing that tells how they were made, so that no change would make them again."""
    made = [name for name in SETTINGS.models if any(Path("results", name).glob("*.*"))]
    recorded = Path(".snakemake/metadata").glob("*")
    if workflow.is_main_process and made and not any(recorded):
        logger.warning(
            f"results/{made[0]} was made elsewhere: .snakemake/ does not record how, so changed settings and code would make nothing again."
            " Copy .snakemake/ too; or, if nothing has changed, snakemake --touch --forceall --cores 1 takes the results as they are"
            " (docs/reruns.md)."
        )


warn_of_results_without_records()


def one_of(names):
    """Return a wildcard constraint that matches these names and no other."""
    return "|".join(map(re.escape, names)) or r"[^\s\S]"


def plans_of(method):
    """Return the names of the plans that a method searches."""
    return [name for name, plan in SETTINGS.every_plan.items() if plan.method == method]


wildcard_constraints:
    model=one_of(SETTINGS.models),
    plan=one_of(SETTINGS.every_plan),
    study=one_of(SETTINGS.studies),
    baseline=one_of(SETTINGS.baselines),


def code(command):
    """Return one `module@hash` for each local module behind a command."""
    return [f"{module}@{version}" for module, version in code_versions(command).items()]


def script(name):
    """Return a function that gives the path of a command from the working directory."""

    path = os.path.relpath(Path(workflow.basedir) / "scripts" / name)
    # Asking for the inputs keeps the path out of what Snakemake records: a checkout may be moved.
    return lambda wildcards, input: path


def flags(*sections, **more):
    """Return the settings of some sections, and more, as one string of flags."""
    values = {}
    for section in sections:
        values.update(getattr(SETTINGS, section).model_dump())
    return cli_flags({**values, **more})


def dashed(values):
    """Return settings with the names that flags of the search methods have."""
    return {key.replace("_", "-"): value for key, value in values.items()}


def plan_settings(wildcards):
    """Return the settings of a plan's search."""
    plan = SETTINGS.every_plan[wildcards.plan].model_dump()
    return dashed({key: value for key, value in plan.items() if key not in NOT_A_FLAG})


def adaptive_flags(wildcards):
    """Return a search's flags; one on a task sees as many tokens at once as the tasks of the report do."""
    window = (
        {"length": SETTINGS.tasks.max_length}
        if SETTINGS.every_plan[wildcards.plan].task
        else {}
    )
    return cli_flags(
        {**plan_settings(wildcards), **window, **SETTINGS.compute.model_dump()}
    )


def random_flags(wildcards):
    return cli_flags(plan_settings(wildcards))


def genetic_flags(wildcards):
    plan = SETTINGS.every_plan[wildcards.plan].model_dump()
    kept = {key: value for key, value in plan.items() if key not in NOT_A_FLAG}
    under = {"ga_pop", "ga_gen", "target_compression"}
    named = {
        key if key in under else key.replace("_", "-"): value
        for key, value in kept.items()
    }
    scope = {"activation-scope": SETTINGS.sensitivity.activation_scope}
    return cli_flags({**named, **scope, **SETTINGS.compute.model_dump()})


def optimal_flags(wildcards):
    plan = SETTINGS.every_plan[wildcards.plan].model_dump()
    kept = {key: value for key, value in plan.items() if key not in NOT_A_FLAG}
    kept.pop("same_size_as")
    return cli_flags({**kept, **SETTINGS.compute.model_dump()})


def optimal_size(wildcards):
    """Return the file whose size an optimal plan is to have; none for one with average bits."""
    name = SETTINGS.every_plan[wildcards.plan].same_size_as
    return [f"results/{wildcards.model}/baselines/{name}/model.gguf"] if name else []


def size_flag(wildcards, input):
    return f"--same-size-as {input.same_size}" if input.same_size else ""


def selection_text(wildcards):
    """Return the saved text that an optimal plan decides its steps on; none where it takes none."""
    plan = SETTINGS.every_plan[wildcards.plan]
    wanted = plan.correct or plan.race
    return [f"results/{wildcards.model}/selection.safetensors"] if wanted else []


def selection_flag(wildcards, input):
    return f"--selection {input.selection}" if input.selection else ""


def sparsegpt_flags(wildcards):
    plan = SETTINGS.every_plan[wildcards.plan].model_dump()
    kept = {key: value for key, value in plan.items() if key not in NOT_A_FLAG}
    named = {
        key: [f"{name}={value}" for name, value in kept[key].items()]
        for key in ("weights", "layer_bits")
    }
    return cli_flags({**kept, **named, **SETTINGS.compute.model_dump()})


def sensitivity_flags(wildcards):
    held = {"shards", "smooth_alpha", "memory_limit"}
    values = SETTINGS.sensitivity.model_dump(exclude=held)
    switches = {key: values[key] or None for key in ("random", "fisher")}
    priced = SETTINGS.sensitivity.metric == "gradient"
    switches["draws"] = values["draws"] if priced else None
    alphas = SETTINGS.sensitivity.smooth_alpha
    smoothing = {"smooth-alpha": alphas} if alphas else {"no-smoothing": True}
    return cli_flags(
        {**dashed({**values, **switches}), **smoothing, **SETTINGS.compute.model_dump()}
    )


def memory_flag(wildcards, input):
    """Return how much memory measuring may take: it decides the order of the work and no figure, so it is no reason to rerun."""
    measured = SETTINGS.sensitivity.has_kld
    return cli_flags(
        {"memory-limit": SETTINGS.sensitivity.memory_limit if measured else None}
    )


def shard_flag(wildcards):
    """Return which share of the layers a job measures, of its name `number-of-count`."""
    return cli_flags({"shard": wildcards.scatteritem.replace("-of-", "/")})


def genetic_pt(wildcards):
    """Return where the search writes its configuration for torch, which no step reads."""
    return f"results/{wildcards.model}/plans/{wildcards.plan}/mixed_precision_config.pt"


def importance_of(wildcards):
    """Return the importance matrix of a model, where the settings want it used."""
    return (
        f"results/{wildcards.model}/layer_stats.safetensors" if SETTINGS.imatrix else []
    )


def search_importance(wildcards):
    """Return the importance matrix for a search some of whose formats look at it."""
    formats = SETTINGS.every_plan[wildcards.plan].formats
    return importance_of(wildcards) if any(map(weighs_columns, formats)) else []


def imatrix_flag(wildcards, input):
    return cli_flags({"imatrix": input.imatrix or None})


def check_flags(wildcards):
    check = SETTINGS.every_plan[wildcards.plan].check
    return cli_flags({"on-miss": check.on_miss, "tolerance": check.tolerance})


def speed_flags(wildcards):
    return cli_flags(SETTINGS.speed.model_dump())


def task_flags(wildcards):
    tasks = SETTINGS.tasks.model_dump()
    named = {"tasks": tasks.pop("names"), "include-path": tasks.pop("include_path")}
    return cli_flags({**named, **tasks, **SETTINGS.compute.model_dump()})


def files_below(folders):
    """Return the files in some folders, and in theirs, but for what Python compiled."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(
        os.path.relpath(path)
        for path in found
        if path.is_file() and path.suffix != ".pyc"
    )


def tasks_below(include_path):
    """Return the files of the bundled tasks and of the user's own."""
    own = [Path(include_path)] if include_path else []
    return files_below([Path(workflow.basedir) / "demo/tasks", *own])


def search_task_files(wildcards):
    """Return the files of the tasks that an adaptive plan may be limited by; none for a plan without a task."""
    plan = SETTINGS.every_plan[wildcards.plan]
    return tasks_below(plan.include_path) if plan.task else []


BESIDE = {
    "genetic": "{of}.smoothing.safetensors",
    "sparsegpt": "compressed",
}


def beside_plan(of):
    """Return a function that gives what stands beside a plan's `of` file and belongs to it: factors, compressed weights."""

    def path(wildcards):
        name = BESIDE.get(SETTINGS.every_plan[wildcards.plan].method)
        if name is None:
            return []
        file = f"results/{wildcards.model}/plans/{wildcards.plan}/{name.format(of=of)}"
        # Snakemake can't compare the content of a folder; the plan holds its digest.
        return [ancient(file) if name == "compressed" else file]

    return path


def task_files(wildcards):
    return tasks_below(SETTINGS.tasks.include_path)


def from_hub(name):
    """Return whether a model is fetched from the model hub. A path that exists always wins."""
    path = SETTINGS.models[name].path
    return looks_like_id(path) and not Path(path).exists()


def model_folder(wildcards):
    """Return the folder of a checkpoint: the user's, or the one that the rule `download` fills."""
    if from_hub(wildcards.model):
        return f"results/{wildcards.model}/checkpoint"
    return SETTINGS.models[wildcards.model].path


def model_files(wildcards):
    """Return the files of a checkpoint that decide what it computes, or the record of its download."""
    if from_hub(wildcards.model):
        return [f"results/{wildcards.model}/download.json"]
    folder = Path(model_folder(wildcards))
    names = (
        [path.name for path in folder.iterdir() if path.is_file()]
        if folder.is_dir()
        else []
    )
    found = sorted(matching(names, PARTS)) or ["config.json"]
    return [str(folder / name) for name in found]


def download_flags(wildcards):
    model = SETTINGS.models[wildcards.model]
    return cli_flags({"model": model.path, "revision": model.revision})


def calibration_text(wildcards):
    return SETTINGS.models[wildcards.model].calibration


def evaluation_text(wildcards):
    return SETTINGS.models[wildcards.model].evaluation


def of_models(*names):
    return expand("results/{model}/{name}", model=SETTINGS.models, name=names)


def with_gguf():
    """Return the names of the models whose plans become GGUF files."""
    return [name for name, model in SETTINGS.models.items() if model.gguf]


def of_plans(*names, models=SETTINGS.models):
    return expand(
        "results/{model}/plans/{plan}/{name}",
        model=models,
        plan=SETTINGS.plans,
        name=names,
    )


def of_baselines(*names):
    return expand(
        "results/{model}/baselines/{baseline}/{name}",
        model=with_gguf(),
        baseline=SETTINGS.baselines,
        name=names,
    )


def baseline_importance(wildcards):
    """Return the importance matrix and the model that it is of, for a baseline whose name asks for it."""
    if not wildcards.baseline.endswith(IMATRIX_SUFFIX):
        return {}
    names = {"imatrix": "layer_stats.safetensors", "model": "model.json"}
    return {key: f"results/{wildcards.model}/{name}" for key, name in names.items()}


def baseline_flags(wildcards, input):
    """Return a baseline's recipe, and what it is given besides."""
    given = {key: input.get(key) for key in ("imatrix", "model")}
    return cli_flags(
        {"recipe": wildcards.baseline.removesuffix(IMATRIX_SUFFIX), **given}
    )


def comparison_files():
    return of_models(
        "comparison.tsv", "comparison.txt", "comparison.html", "comparison.svg"
    )


def study_files():
    return expand(
        "results/{model}/studies/{study}.{end}",
        model=SETTINGS.models,
        study=SETTINGS.studies,
        end=("tsv", "txt", "svg"),
    )


def study_cells(wildcards):
    """Return the files of the plans that a study compares."""
    return expand(
        "results/{model}/plans/{plan}/{name}",
        model=wildcards.model,
        plan=[
            cell.name
            for cell in SETTINGS.studies[wildcards.study].cells(wildcards.study)
        ],
        name=("bits.json", "perplexity.json"),
    )


def study_flags(wildcards):
    """Return the cells of a study with what was varied, as one string of flags."""
    study = SETTINGS.studies[wildcards.study]
    cells = [
        ["--cell", cell.name, *(f"{key}={label}" for key, label in cell.labels.items())]
        for cell in study.cells(wildcards.study)
    ]
    along = study.x or min(study.vary, default="also")
    return shlex.join(["--study", wildcards.study, "--x", along, *sum(cells, [])])


PLAN_FILES = ("plan.json", "bits.json", "perplexity.json")
GGUF_FILES = ("gguf_perplexity.json", "gguf.json", "model.gguf", "speed.json")


def compared_plans(wildcards):
    files = GGUF_FILES if SETTINGS.models[wildcards.model].gguf else ()
    tasks = ("tasks.json",) if SETTINGS.tasks.names else ()
    return of_plans(*PLAN_FILES, *files, *tasks, models=[wildcards.model])


def compared_model(wildcards):
    """Return the full-precision model's own figures on the tasks, where there are any."""
    return [f"results/{wildcards.model}/tasks.json"] if SETTINGS.tasks.names else []


def compared_baselines(wildcards):
    if not SETTINGS.models[wildcards.model].gguf:
        return []
    return expand(
        "results/{model}/baselines/{baseline}/{name}",
        model=wildcards.model,
        baseline=SETTINGS.baselines,
        name=("model.gguf", "perplexity.json", "speed.json"),
    )


def compared_agreement(wildcards):
    """Return what agrees with measured KL, where plans are searched from it."""
    searched = plans_of("genetic") + plans_of("optimal")
    if not SETTINGS.sensitivity.has_kld or not searched:
        return []
    return [f"results/{wildcards.model}/agreement.json"]


def report_flags(wildcards):
    tasks = f"results/{wildcards.model}/tasks.json" if SETTINGS.tasks.names else None
    gguf = SETTINGS.models[wildcards.model].gguf
    return cli_flags(
        {
            "plan": list(SETTINGS.plans),
            "baseline": SETTINGS.baselines if gguf else None,
            "model-tasks": tasks,
            "agreement": compared_agreement(wildcards) or None,
        }
    )


def reference_file(wildcards):
    return f"results/{wildcards.model}/baselines/{SETTINGS.baselines[0]}/model.gguf"


def weights_mb(wildcards):
    """Return the size of a checkpoint's weights; 0 before a model is fetched."""
    files = Path(model_folder(wildcards)).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) / 2**20


def model_mem_mb(wildcards, attempt):
    """Return memory for a walk: imports and logits, and for the largest block a share of the weights, a smaller one of large models
    (docs/scaling.md); grows when retried."""
    weights = weights_mb(wildcards)
    return int((3 * GIB_MB + min(0.3 * weights, 3 * GIB_MB + 0.08 * weights)) * attempt)


def runtime_mem_mb(wildcards, attempt):
    """Return memory for llama.cpp, which maps a whole file: its pages count as the job's where a cluster measures resident memory."""
    return int((3 * GIB_MB + 1.1 * weights_mb(wildcards)) * attempt)


def sensitivity_mem_mb(wildcards, attempt):
    """Return memory for the sensitivity table, which also holds what the settings allow for candidates."""
    carried = bytes_of(SETTINGS.sensitivity.memory_limit) // 2**20
    measured = SETTINGS.sensitivity.has_kld
    return model_mem_mb(wildcards, attempt) + measured * carried


def search_mem_mb(wildcards, attempt):
    """Return memory for a search, which also keeps quantized weights: one byte each, 4 GiB at most; a task wants the whole model."""
    if getattr(SETTINGS.every_plan[wildcards.plan], "task", None):
        return whole_mem_mb(wildcards, attempt) + 4 * GIB_MB
    return model_mem_mb(wildcards, attempt) + int(
        min(4 * GIB_MB, weights_mb(wildcards))
    )


def whole_mem_mb(wildcards, attempt):
    """Return memory for lm-eval, which wants the whole model at once, in up to twice its stored size."""
    return int((4 * GIB_MB + 2.2 * weights_mb(wildcards)) * attempt)


def sparsegpt_mem_mb(wildcards, attempt):
    """Return memory for SparseGPT: a walk, and the second moments of a block's inputs with their factors."""
    moments = min(40 * GIB_MB, 0.6 * weights_mb(wildcards))
    return model_mem_mb(wildcards, attempt) + int(moments * attempt)


def time_limit(hours, minutes_per_gb):
    """Return a function that gives a job's time limit in minutes: some hours, and more for each GB of weights; grows when retried."""

    def limit(wildcards, attempt):
        return int(
            (60 * hours + minutes_per_gb * weights_mb(wildcards) / 1000) * attempt
        )

    return limit


def whole_machine(wildcards):
    """Return every core of a run on one machine, so that nothing else runs beside a timing; elsewhere 1, and the profile says more."""
    return 1 if workflow.remote_exec else workflow.resource_settings.cores or 1


def compared_name(wildcards):
    """Return the name of the plan or baseline that a file belongs to."""
    return wildcards.get("plan") or wildcards.baseline


def show_comparisons():
    """Print the tables that this run made."""
    for model in SETTINGS.models:
        path = Path(f"results/{model}/comparison.txt")
        if path.exists() and path.stat().st_mtime >= STARTED:
            print(
                f"\n{model}\n{path.read_text()}\n{path.with_suffix('.html')} has the figure.",
                file=sys.stderr,
            )


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
    ask_patiently_(Path(workflow.basedir) / "profiles" / "slurm" / "bin")
    logger.addHandler(ENDINGS)


def show_endings(succeeded):
    """Print which jobs of SLURM's ended early and where their logs are, and for how long the controller was away."""
    told = filter(None, (ENDINGS.summary(succeeded), times_away()))
    print("".join(f"\n{text}\n" for text in told), end="", file=sys.stderr)
