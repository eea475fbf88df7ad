"""From settings to the flags of commands: one string for each rule, which Snakemake records and compares.

Every function takes the settings first, and then what Snakemake passes to an input function: wildcards, or wildcards and inputs.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from bitplan.config.flags import cli_flags, flag_values
from bitplan.config.settings import IMATRIX_SUFFIX, Settings
from bitplan.core.section import Section
from bitplan.runtimes.registry import runtime_named
from bitplan.search.plan_settings import PlanSettings
from bitplan.search.registry import METHODS
from bitplan.workflow.inputs import (
    BASELINES,
    calibration_text,
    compared_agreement,
    compared_table,
    predicted_palette,
    results,
    told_runtimes,
)

# The base file was checked: one of a plan or a recipe may be as far from the model as it was allowed to be.
CHECKED_BEFORE = {"allow-base-kl": "inf"}


def flags_of(settings: Settings, *sections: str, **more: Any) -> str:
    """Return the settings of some sections, and more, as one string of flags."""
    values: dict[str, Any] = {}
    for section in sections:
        values.update(flag_values(getattr(settings, section)))
    return cli_flags({**values, **more})


def text_flags(settings: Settings, section: str, skip_tokens: int = 0) -> str:
    """Return how a text is cut into windows, after skipping some tokens, and where the model is run on it."""
    return flags_of(settings, "compute", section, **{"bos": settings.bos, "skip-tokens": skip_tokens or None})


def evaluation_flags(settings: Settings, wildcards: Any, held_out_from: Mapping[str, int]) -> str:
    """Return how the evaluation text is cut: behind what is measured on, if it is the calibration text too."""
    return text_flags(settings, "evaluation", held_out_from[wildcards.model])


def _shared_values(settings: Settings, plan: PlanSettings) -> dict[str, Any]:
    """Return the settings outside a plan that its search is given too, as its method says."""
    values: dict[str, Any] = {}
    for shared in METHODS[plan.method].shared:
        name, _, key = shared.path.partition(".")
        if not shared.when or getattr(plan, shared.when):
            section: Section = getattr(settings, name)
            some = flag_values(section, (key,) if key else ())
            values |= dict.fromkeys((shared.flag,), *some.values()) if shared.flag else some
    return values


def plan_flags(settings: Settings, wildcards: Any) -> str:
    """Return the flags of the command that searches a plan."""
    plan = settings.every_plan[wildcards.plan]
    told = {"runtimes": told_runtimes(settings, wildcards) or None}
    return cli_flags({**flag_values(plan), **_shared_values(settings, plan), **told})


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
    metric = "gradient" if settings.priced else "measured"
    resolved = settings.sensitivity.model_copy(update={"metric": metric})
    return cli_flags({**flag_values(resolved), **flag_values(settings.compute)})


def memory_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return how much memory measuring may take: it decides the order of the work and no figure, so a change reruns nothing.

    Asking for the inputs keeps the flag out of what Snakemake records.
    """
    measured = settings.has_kld
    return cli_flags({"memory-limit": settings.sensitivity.memory_limit if measured else None})


def shard_flag(settings: Settings, wildcards: Any) -> str:
    """Return which share of the layers a job measures, from its name `number-of-count`."""
    return cli_flags({"shard": wildcards.scatteritem.replace("-of-", "/")})


def check_flags(settings: Settings, wildcards: Any) -> str:
    """Return what the average-bit check does when a plan exceeds its target."""
    return cli_flags(flag_values(settings.every_plan[wildcards.plan].check))


def rounding_flags(settings: Settings, wildcards: Any) -> str:
    """Return how the weights of a plan are rounded; the settings of tuning only where it is tuned."""
    resolved = settings.rounding.model_copy(update={"default": settings.rounding_of(wildcards.plan)})
    return cli_flags({**flag_values(resolved), **flag_values(settings.compute)})


def speed_flags(settings: Settings, wildcards: Any) -> str:
    """Return how files are timed."""
    return flags_of(settings, "speed")


def task_flags(settings: Settings, wildcards: Any) -> str:
    """Return which lm-eval tasks are run, and how."""
    return flags_of(settings, "tasks", "compute")


def settings_of_model(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the settings of one model as JSON, for its estimate: studies and other models left out.

    An estimate is made once for a model: asking for the inputs keeps the settings out of what Snakemake records.
    """
    kept = settings.model_dump(mode="json", exclude_unset=True, exclude={"studies"})
    return json.dumps({**kept, "models": {wildcards.model: kept["models"][wildcards.model]}}, sort_keys=True)


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


def export_flags(settings: Settings, wildcards: Any) -> str:
    """Return the runtime that a plan is exported for, the settings that it reads, and what the file is called."""
    named = {"runtime": wildcards.runtime, "model-name": wildcards.model, "plan-name": wildcards.plan}
    names = runtime_named(wildcards.runtime).settings
    return cli_flags({**(flag_values(settings.export, names) if names else {}), **named})


def base_flag(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return the flag that names what an export starts from; empty where that is the checkpoint."""
    return cli_flags({"base": input.base or None})


def baseline_flags(settings: Settings, wildcards: Any, input: Any) -> str:
    """Return a baseline's recipe, and the importance matrix where its name asks for one."""
    given = {key: input.get(key) for key in ("imatrix", "model")}
    return cli_flags({"recipe": wildcards.baseline.removesuffix(IMATRIX_SUFFIX), **given})


def _predicted(settings: Settings, wildcards: Any) -> dict[str, Any]:
    """Return what a comparison predicts plans from: the table, the palette, and the text that the page's command names."""
    table = compared_table(settings, wildcards)
    text = calibration_text(settings, wildcards)
    return {"sensitivity": table, "palette": predicted_palette(settings), "calibration-name": text} if table else {}


def report_flags(settings: Settings, wildcards: Any) -> str:
    """Return what the comparison of a model shows."""
    runtimes = settings.models[wildcards.model].runtimes
    return cli_flags(
        {
            "plan": list(settings.plans),
            "baseline": settings.baselines if BASELINES in runtimes else None,
            "runtime": runtimes or None,
            "unscored": [name for name in runtimes if not runtime_named(name).scored_here] or None,
            "model-tasks": results(wildcards, "tasks.json") if settings.tasks.names else None,
            "agreement": compared_agreement(settings, wildcards) or None,
            **_predicted(settings, wildcards),
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
