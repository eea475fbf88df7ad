"""Which files a rule reads, from the settings and the wildcards of a job.

Paths of results are relative to the working directory; `root` is the folder of the workflow, where the bundled tasks are.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitplan.config.settings import IMATRIX_SUFFIX, Settings
from bitplan.formats.facts import uses_importance
from bitplan.models.checkpoint_files import PARTS, match_names
from bitplan.models.hub.ids import looks_like_id
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.runtimes.runtime import Runtime
from bitplan.search.plan_settings import OF_RUNTIMES
from bitplan.search.registry import METHODS, TABLE, Method

ROUNDED_PLAN = "rounding"  # folder in that of a plan
PLAN_FILES = ("plan.json", "bits.json", "perplexity.json")
# The runtime that the baselines are files of.
BASELINES = "gguf"
BASELINE_FILES = ("model.gguf", "perplexity.json", "speed.json")


def results(wildcards: Any, *names: str) -> str:
    """Return the path of a result of a job's model."""
    return "/".join(("results", wildcards.model, *names))


def from_hub(settings: Settings, name: str) -> bool:
    """Return whether a model is fetched from the model hub. A path that exists always wins."""
    path = settings.models[name].path
    return looks_like_id(path) and not Path(path).exists()


def model_folder(settings: Settings, wildcards: Any) -> str:
    """Return the folder of a checkpoint: the user's, or the one that the rule `download` fills."""
    if from_hub(settings, wildcards.model):
        return results(wildcards, "checkpoint")
    return settings.models[wildcards.model].path


def model_files(settings: Settings, wildcards: Any) -> list[str]:
    """Return the files of a checkpoint that decide what it computes, or the record of its download."""
    if from_hub(settings, wildcards.model):
        return [results(wildcards, "download.json")]
    folder = Path(model_folder(settings, wildcards))
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return [str(folder / name) for name in sorted(match_names(names, PARTS)) or ["config.json"]]


def calibration_text(settings: Settings, wildcards: Any) -> str:
    """Return the text on which statistics are taken and searches run."""
    return settings.models[wildcards.model].calibration


def evaluation_text(settings: Settings, wildcards: Any) -> str:
    """Return the held-out text on which plans are compared."""
    return settings.models[wildcards.model].evaluation


def method_of(settings: Settings, wildcards: Any) -> Method:
    """Return the method of a plan."""
    return METHODS[settings.every_plan[wildcards.plan].method]


def search_inputs(settings: Settings, wildcards: Any) -> dict[str, str]:
    """Return the results of a model that a plan's search reads, by the first part of their names."""
    names = ("model.json", *method_of(settings, wildcards).inputs)
    return {name.partition(".")[0]: results(wildcards, name) for name in names}


def export_calibration(settings: Settings, wildcards: Any) -> str | list[str]:
    """Return the calibration text behind a plan's file, which names it; none where neither search nor importance looks at it."""
    used = method_of(settings, wildcards).inputs or settings.imatrix
    return calibration_text(settings, wildcards) if used else []


def importance_of(settings: Settings, wildcards: Any) -> str | list[str]:
    """Return the importance matrix of a model, where the settings want it used."""
    return results(wildcards, "layer_stats.safetensors") if settings.imatrix else []


def search_importance(settings: Settings, wildcards: Any) -> str | list[str]:
    """Return the importance matrix for a search some of whose formats use it."""
    formats = settings.every_plan[wildcards.plan].formats
    return importance_of(settings, wildcards) if any(map(uses_importance, formats)) else []


def optimal_size(settings: Settings, wildcards: Any) -> list[str]:
    """Return the file whose size an optimal plan is to have; none for one with average bits."""
    name = settings.every_plan[wildcards.plan].same_size_as
    return [results(wildcards, "baselines", name, "model.gguf")] if name else []


def size_bases(settings: Settings, wildcards: Any) -> list[str]:
    """Return what the files of a model's runtimes are made from, where an optimal plan has a limit on their size."""
    limited = settings.every_plan[wildcards.plan].max_size is not None
    names = dict.fromkeys(runtime_named(name).base for name in settings.models[wildcards.model].runtimes)
    return [results(wildcards, name) for name in names if name] if limited else []


def validation_text(settings: Settings, wildcards: Any) -> list[str]:
    """Return the saved text that an optimal plan decides its steps on; none where it takes none."""
    plan = settings.every_plan[wildcards.plan]
    return [results(wildcards, "validation.safetensors")] if plan.correct or plan.refine else []


def genetic_pt(settings: Settings, wildcards: Any) -> str:
    """Return where the genetic search writes its configuration for torch, which no step reads."""
    return results(wildcards, "plans", wildcards.plan, "mixed_precision_config.pt")


def beside_plan(settings: Settings, wildcards: Any, of: str) -> list[str]:
    """Return what stands beside a plan's `of` file and belongs to it: smoothing factors or compressed weights."""
    name = method_of(settings, wildcards).beside
    return [results(wildcards, "plans", wildcards.plan, name.format(of=of))] if name else []


def is_rounded(settings: Settings, wildcards: Any) -> bool:
    """Return whether the weights of a plan are rounded by a step of their own, otherwise than to nearest."""
    return settings.rounding_of(wildcards.plan) != "nearest"


def used_plan(settings: Settings, wildcards: Any) -> str:
    """Return the plan that is scored and exported: the one that was searched, or that one with its weights rounded."""
    folder = (ROUNDED_PLAN,) if is_rounded(settings, wildcards) else ()
    return results(wildcards, "plans", wildcards.plan, *folder, "plan.json")


def beside_used_plan(settings: Settings, wildcards: Any) -> list[str]:
    """Return what stands beside the plan that is scored and exported: also its rounded codes."""
    if not is_rounded(settings, wildcards):
        return beside_plan(settings, wildcards, "plan")
    folder = Path(used_plan(settings, wildcards)).parent
    searched = beside_plan(settings, wildcards, "plan")
    return [str(folder / name) for name in (*(Path(path).name for path in searched), "rounded")]


def _files_below(folders: Iterable[Path]) -> list[str]:
    """Return the files in some folders, and in theirs, except those that Python compiled."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(os.path.relpath(path) for path in found if path.is_file() and path.suffix != ".pyc")


def tasks_below(root: Path, include_path: str | None) -> list[str]:
    """Return the files of the bundled tasks and of the user's own."""
    return _files_below([root / "demo/tasks", *([Path(include_path)] if include_path else [])])


def task_files(settings: Settings, wildcards: Any, root: Path) -> list[str]:
    """Return the files of the tasks that the settings name."""
    return tasks_below(root, settings.tasks.include_path)


def search_task_files(settings: Settings, wildcards: Any, root: Path) -> list[str]:
    """Return the files of the tasks that an adaptive plan may be limited by; none for a plan without a task."""
    plan = settings.every_plan[wildcards.plan]
    return tasks_below(root, plan.include_path) if plan.task else []


def baseline_importance(settings: Settings, wildcards: Any) -> dict[str, str]:
    """Return the importance matrix and the model that it is of, for a baseline whose name asks for it."""
    if not wildcards.baseline.endswith(IMATRIX_SUFFIX):
        return {}
    names = {"imatrix": "layer_stats.safetensors", "model": "model.json"}
    return {key: results(wildcards, name) for key, name in names.items()}


def reference_file(settings: Settings, wildcards: Any) -> str:
    """Return the baseline that every speed is compared with."""
    return results(wildcards, "baselines", settings.baselines[0], "model.gguf")


def runtime_results(settings: Settings, wildcards: Any) -> list[str]:
    """Return the results of a plan in the runtimes of a job's model, from the plan's folder."""
    runtimes = map(runtime_named, settings.models[wildcards.model].runtimes)
    return [f"{runtime.name}/{name}" for runtime in runtimes for name in runtime.files]


def told_runtimes(settings: Settings, wildcards: Any) -> list[str]:
    """Return the runtimes of a job's model that its search is told: all where sizes are what they store, else those that may refuse a choice.

    Other runtimes leave its choices as they are, so that adding one to a model repeats no search.
    """
    plan, names = settings.every_plan[wildcards.plan], settings.models[wildcards.model].runtimes
    if not METHODS[plan.method].runtimes:
        return []
    return names if plan.counts_stored else [name for name in names if _may_refuse(settings, name, plan.palette)]


def _may_refuse(settings: Settings, name: str, palette: list[str]) -> bool:
    """Return whether a runtime refuses embeddings in a format that is measured, or a format of a palette where its groups do not divide the rows."""
    runtime, embeddings = runtime_named(name), settings.sensitivity.embeddings or []
    candidates = [] if OF_RUNTIMES in palette else palette
    verdicts = [
        *(runtime.holds(form, embedding=True) for form in embeddings),
        *(runtime.holds(form, fits=False) for form in candidates),
    ]
    return any(verdict.status == "refused" for verdict in verdicts)


def runtime_of(wildcards: Any) -> Runtime:
    """Return the runtime that a file belongs to; baselines are llama.cpp's."""
    return runtime_named(wildcards.get("runtime", BASELINES))


def runtime_name(settings: Settings, wildcards: Any) -> str:
    """Return the name of the runtime that a file belongs to."""
    return runtime_of(wildcards).name


def environment_of(settings: Settings, wildcards: Any, root: Path) -> str:
    """Return the path of the environment in which the runtime of a file is run."""
    return str(root / "envs" / f"{runtime_of(wildcards).environment}.yaml")


def export_base(settings: Settings, wildcards: Any) -> str | list[str]:
    """Return the result of a model that a runtime's export starts from; none for one that starts from the checkpoint."""
    base = runtime_named(wildcards.runtime).base
    return results(wildcards, base) if base else []


def artifact(settings: Settings, wildcards: Any) -> list[str]:
    """Return what a runtime loads of a plan, a file or a folder, as the only item of a list."""
    return [results(wildcards, "plans", wildcards.plan, wildcards.runtime, runtime_named(wildcards.runtime).artifact)]


def card_scores(settings: Settings, wildcards: Any) -> str:
    """Return the scores that a model card shows: of the file in its runtime, or of the simulated plan where that cannot run here."""
    in_runtime = (wildcards.runtime,) if runtime_named(wildcards.runtime).scored_here else ()
    return results(wildcards, "plans", wildcards.plan, *in_runtime, "perplexity.json")


def artifact_report(settings: Settings, wildcards: Any) -> str | list[str]:
    """Return the report with the digest of an artifact that is a folder, which Snakemake cannot compare by content; none for a file."""
    report = results(wildcards, "plans", wildcards.plan, wildcards.runtime, "report.json")
    return report if runtime_named(wildcards.runtime).is_folder else []


def is_folder_with_digest(path: str) -> bool:
    """Return whether a result is a folder whose digest is in a file beside it: in the plan or in the runtime's report."""
    runtimes = [f"{runtime.name}/{runtime.artifact}" for runtime in map(runtime_named, RUNTIMES) if runtime.is_folder]
    return path.endswith(("/compressed", "/rounded", *runtimes))


def compared_plans(settings: Settings, wildcards: Any) -> list[str]:
    """Return the files of all plans that a model's comparison shows."""
    tasks = ("tasks.json",) if settings.tasks.names else ()
    names = (*PLAN_FILES, *runtime_results(settings, wildcards), *tasks)
    rounded = [plan for plan in settings.plans if settings.rounding_of(plan) != "nearest"]
    own = [results(wildcards, "plans", plan, ROUNDED_PLAN, "rounding.tsv") for plan in rounded]
    return [results(wildcards, "plans", plan, name) for plan in settings.plans for name in names] + own


def compared_model(settings: Settings, wildcards: Any) -> list[str]:
    """Return the reference model's own figures on the tasks, where there are any."""
    return [results(wildcards, "tasks.json")] if settings.tasks.names else []


def compared_baselines(settings: Settings, wildcards: Any) -> list[str]:
    """Return the files of the baselines that a model's comparison shows."""
    baselines = settings.baselines if BASELINES in settings.models[wildcards.model].runtimes else []
    return [results(wildcards, "baselines", name, file) for name in baselines for file in BASELINE_FILES]


def compared_agreement(settings: Settings, wildcards: Any) -> list[str]:
    """Return the table of what agrees with measured KL, where plans are searched from it."""
    searched = any(TABLE in METHODS[plan.method].inputs for plan in settings.every_plan.values())
    measured = settings.sensitivity.anchors is not None and searched
    return [results(wildcards, "agreement.json")] if measured else []


def predicted_palette(settings: Settings) -> list[str]:
    """Return the formats whose plans a comparison predicts: the palette of the first plan that chooses from a table by size; none
    where that has no KL."""
    chosen = (getattr(plan, "palette", []) for plan in settings.plans.values())
    return next(filter(None, chosen), []) if settings.has_kld else []


def compared_table(settings: Settings, wildcards: Any) -> list[str]:
    """Return the sensitivity table that a comparison predicts plans from; none where no plan has a palette."""
    return [results(wildcards, TABLE)] if predicted_palette(settings) else []


def study_cells(settings: Settings, wildcards: Any) -> list[str]:
    """Return the files of the plans that a study compares."""
    cells = settings.studies[wildcards.study].cells(wildcards.study)
    return [results(wildcards, "plans", cell.name, name) for cell in cells for name in ("bits.json", "perplexity.json")]


def compared_name(wildcards: Any) -> str:
    """Return the name of the plan or baseline that a file belongs to."""
    return wildcards.get("plan") or wildcards.baseline
