"""From settings to the flags of commands: one string for each rule, which Snakemake records and compares.

Every function takes the settings first, and then what Snakemake passes to an input function: wildcards, or wildcards and inputs.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from bitplan.config.settings import IMATRIX_SUFFIX, Settings, cli_flags
from bitplan.workflow.inputs import compared_agreement, results

# The base file was checked: one of a plan or a recipe may be as far from the model as it was allowed to be.
CHECKED_BEFORE = {"allow-base-kl": "inf"}
# What both feedback and tuning are told; the other settings of rounding are for tuning.
FEEDBACK_SETTINGS = {"damping", "descents", "reference_share"}
NOT_A_FLAG = {"method", "check", "rounding"}
# Methods whose search runs the model, and so takes the settings of `compute`.
RUN_THE_MODEL = {"adaptive", "genetic", "optimal", "sparsegpt"}


def flags_of(settings: Settings, *sections: str, **more: Any) -> str:
    """Return the settings of some sections, and more, as one string of flags."""
    values: dict[str, Any] = {}
    for section in sections:
        values.update(getattr(settings, section).model_dump())
    if "sequences" in values:
        values["sequences"] = values["sequences"] or "all"
    return cli_flags({**values, **more})


def text_flags(settings: Settings, section: str, skip_tokens: int = 0) -> str:
    """Return how a text is cut into windows, after skipping some tokens, and where the model is run on it."""
    return flags_of(settings, "compute", section, **{"bos": settings.bos, "skip-tokens": skip_tokens or None})


def evaluation_flags(settings: Settings, wildcards: Any, held_out_from: Mapping[str, int]) -> str:
    """Return how the evaluation text is cut: behind what is measured on, if it is the calibration text too."""
    return text_flags(settings, "evaluation", held_out_from[wildcards.model])


def _dashed(values: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in values.items()}


def _adaptive(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Return a search's settings; one on a task sees as many tokens at once as the tasks of the report do."""
    return {**values, "length": settings.tasks.max_length} if values["task"] else values


def _genetic(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "activation_scope": settings.sensitivity.activation_scope}


def _optimal(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "same_size_as"}


def _sparsegpt(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    named = {key: [f"{name}={value}" for name, value in values[key].items()] for key in ("weights", "layer_bits")}
    return {**values, **named}


# How the settings of a method's plans become flags, where not one by one.
BY_METHOD = {"adaptive": _adaptive, "genetic": _genetic, "optimal": _optimal, "sparsegpt": _sparsegpt}


def plan_flags(settings: Settings, wildcards: Any) -> str:
    """Return the flags of the command that searches a plan."""
    plan = settings.every_plan[wildcards.plan]
    values = {key: value for key, value in plan.model_dump().items() if key not in NOT_A_FLAG}
    compute = settings.compute.model_dump() if plan.method in RUN_THE_MODEL else {}
    adapted = BY_METHOD[plan.method](settings, values) if plan.method in BY_METHOD else values
    return cli_flags({**_dashed(adapted), **compute})


def size_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the flag that names the file whose size a plan has to have; empty where there is none."""
    return f"--same-size-as {input.same_size}" if input.same_size else ""


def validation_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the flag that names the saved validation text; empty where there is none."""
    return f"--validation {input.validation}" if input.validation else ""


def imatrix_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the flag that names the importance matrix; empty where there is none."""
    return cli_flags({"imatrix": input.imatrix or None})


def sensitivity_flags(settings: Settings, wildcards: Any) -> str:
    """Return the flags of the sensitivity measurement, without those that change no figure."""
    values = settings.sensitivity.model_dump(exclude={"shards", "smooth_alpha", "memory_limit"})
    switches = {key: values[key] or None for key in ("random", "fisher")}
    priced = settings.sensitivity.metric == "gradient"
    switches |= {key: values[key] if priced else None for key in ("draws", "rounding")}
    alphas = settings.sensitivity.smooth_alpha
    smoothing = {"smooth-alpha": alphas} if alphas else {"no-smoothing": True}
    return cli_flags({**_dashed({**values, **switches}), **smoothing, **settings.compute.model_dump()})


def memory_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return how much memory measuring may take: it decides the order of the work and no figure, so a change reruns nothing.

    Asking for the inputs keeps the flag out of what Snakemake records.
    """
    measured = settings.sensitivity.has_kld
    return cli_flags({"memory-limit": settings.sensitivity.memory_limit if measured else None})


def shard_flag(settings: Settings, wildcards: Any) -> str:
    """Return which share of the layers a job measures, from its name `number-of-count`."""
    return cli_flags({"shard": wildcards.scatteritem.replace("-of-", "/")})


def check_flags(settings: Settings, wildcards: Any) -> str:
    """Return what the average-bit check does when a plan exceeds its target."""
    check = settings.every_plan[wildcards.plan].check
    return cli_flags({"on-miss": check.on_miss, "tolerance": check.tolerance})


def rounding_flags(settings: Settings, wildcards: Any) -> str:
    """Return how the weights of a plan are rounded; the settings of tuning only where it is tuned."""
    rounding, held = settings.rounding_of(wildcards.plan), settings.rounding
    values: dict[str, Any] = {"rounding": rounding, **held.model_dump(include=FEEDBACK_SETTINGS)}
    if rounding == "tuned":
        values |= held.model_dump(include={"steps", "tokens_per_step"})
    return cli_flags({**_dashed(values), **settings.compute.model_dump()})


def speed_flags(settings: Settings, wildcards: Any) -> str:
    """Return how GGUF files are timed."""
    return cli_flags(settings.speed.model_dump())


def task_flags(settings: Settings, wildcards: Any) -> str:
    """Return which lm-eval tasks are run, and how."""
    tasks = settings.tasks.model_dump()
    named = {"tasks": tasks.pop("names"), "include-path": tasks.pop("include_path")}
    return cli_flags({**named, **tasks, **settings.compute.model_dump()})


def download_flags(settings: Settings, wildcards: Any) -> str:
    """Return which model of the hub is fetched."""
    model = settings.models[wildcards.model]
    return cli_flags({"model": model.path, "revision": model.revision})


def base_flags(settings: Settings, wildcards: Any) -> str:
    """Return the precision and the name of a model's own GGUF."""
    return cli_flags({"name": wildcards.model, "type": settings.models[wildcards.model].base_type})


def base_check_flags(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return how a model's own GGUF is checked: in windows as long as those of the evaluation.

    A file that passed is not made again for another length or limit: asking for the inputs keeps these out of what Snakemake records.
    """
    allowed = settings.models[wildcards.model].allow_base_kl
    return cli_flags({"allow-base-kl": allowed, "length": settings.evaluation.length})


def calibration_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the flag that names the calibration text behind a plan; empty where there is none."""
    return cli_flags({"calibration": input.calibration or None})


def plan_gguf_flags(settings: Settings, wildcards: Any) -> str:
    """Return the settings of the export, and what the file is called."""
    named = {"model-name": wildcards.model, "plan-name": wildcards.plan}
    return cli_flags({**settings.export.model_dump(), **named})


def baseline_flags(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return a baseline's recipe, and the importance matrix where its name asks for one."""
    given = {key: input.get(key) for key in ("imatrix", "model")}
    return cli_flags({"recipe": wildcards.baseline.removesuffix(IMATRIX_SUFFIX), **given})


def report_flags(settings: Settings, wildcards: Any) -> str:
    """Return what the comparison of a model shows."""
    gguf = settings.models[wildcards.model].gguf
    return cli_flags(
        {
            "plan": list(settings.plans),
            "baseline": settings.baselines if gguf else None,
            "model-tasks": results(wildcards, "tasks.json") if settings.tasks.names else None,
            "agreement": compared_agreement(settings, wildcards) or None,
        }
    )


def study_flags(settings: Settings, wildcards: Any) -> str:
    """Return the cells of a study with what was varied."""
    study = settings.studies[wildcards.study]
    along = study.x or min(study.vary, default="also")
    words = ["--study", wildcards.study, "--x", along]
    for cell in study.cells(wildcards.study):
        words += ["--cell", cell.name, *(f"{key}={label}" for key, label in cell.labels.items())]
    return shlex.join(words)
