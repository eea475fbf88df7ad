"""The palette of what runtimes hold, and the check of every palette against them: before anything is made, without torch.

Models share plans, so `palette: runtime` is what the runtimes of all models hold. It stands in the place of the word before the settings
are validated; where there is none, the word stays, and `check_palettes` says why.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitplan.core.errors import Problem, UserError
from bitplan.runtimes.palette import narrowest_bits, palette_of_runtimes, quantizes
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.runtimes.runtime import Runtime
from bitplan.search.plan_settings import OF_RUNTIMES

if TYPE_CHECKING:
    from bitplan.config.settings import Settings

DEFAULT_RUNTIMES = ("gguf",)
STORED = {"sizes": "stored"}
Config = Mapping[str, Any]


def with_runtime_palettes(config: Config) -> dict[str, Any]:
    """Return the configuration with the formats that the models' runtimes hold for `palette: runtime`, where there are any."""
    runtimes = [runtime_named(name) for name in named_runtimes(config)]
    palette = palette_of_runtimes(runtimes, importance=config.get("imatrix") is not False)
    if not quantizes(palette):
        return dict(config)
    found = {**config, "plans": _with_palette(config.get("plans"), palette)}
    studies = config.get("studies")
    if isinstance(studies, Mapping):
        found["studies"] = {name: _study_with_palette(study, palette) for name, study in studies.items()}
    return found


def held_embeddings(config: Config, formats: Sequence[str]) -> list[str]:
    """Return the formats in which the runtimes of some model all store the token embedding: others are not worth measuring."""
    models = [{"models": {name: model}} for name, model in (config.get("models") or {}).items()]
    runtimes = [[runtime_named(name) for name in named_runtimes(model)] for model in models]
    return [name for name in formats if any(all(_stores(each, name) for each in one) for one in runtimes)]


def _stores(runtime: Runtime, embedding: str) -> bool:
    return runtime.holds(embedding, embedding=True).status != "refused"


def named_runtimes(config: Config) -> list[str]:
    """Return the runtimes of all models once; names that are none are left for the settings to say."""
    models = (model for model in (config.get("models") or {}).values() if isinstance(model, Mapping))
    listed = (model.get("runtimes", DEFAULT_RUNTIMES) for model in models)
    names = (name for each in listed if isinstance(each, (list, tuple)) for name in each)
    return [name for name in dict.fromkeys(map(str, names)) if name in RUNTIMES]


def _with_palette(plans: Any, palette: Sequence[str]) -> Any:
    return {name: _filled(plan, palette) for name, plan in plans.items()} if isinstance(plans, Mapping) else plans


def _study_with_palette(study: Any, palette: Sequence[str]) -> Any:
    return {**study, "plan": _filled(study.get("plan"), palette)} if isinstance(study, Mapping) else study


def _filled(plan: Any, palette: Sequence[str]) -> Any:
    """Return a plan with the formats of its palette; of an optimal one the sizes are what runtimes store unless it says otherwise."""
    if not isinstance(plan, Mapping) or plan.get("palette") not in (OF_RUNTIMES, [OF_RUNTIMES]):
        return plan
    sizes = STORED if plan.get("method") == "optimal" and plan.get("sizes") is None else {}
    return {**plan, "palette": list(palette), **sizes}


def check_palettes(settings: "Settings") -> None:
    """Raise `UserError` for palettes that the runtimes of a model do not hold, and for sizes that no choice of these reaches."""
    problems = [*_unfilled(settings), *_refused(settings), *_out_of_reach(settings)]
    if problems:
        raise UserError(problems)


def _palettes(settings: "Settings") -> Iterator[tuple[str, list[str]]]:
    """Yield plans with what they may choose from."""
    for name, plan in settings.every_plan.items():
        if palette := getattr(plan, "palette", None):
            yield name, palette


def _unfilled(settings: "Settings") -> Iterator[Problem]:
    """Yield the plans for which no format is left that all runtimes hold."""
    named = [f"{name} ({', '.join(model.runtimes)})" for name, model in settings.models.items() if model.runtimes]
    for plan, palette in _palettes(settings):
        if palette != [OF_RUNTIMES]:
            continue
        where = f"plans.{plan}.palette"
        if not named:
            what = f"is {OF_RUNTIMES}, and models {', '.join(settings.models)} name no runtime"
            yield Problem("RUNTIME-NO-PALETTE", where, what, "Set models.X.runtimes, as [gguf], or name formats")
        else:
            what = f"is {OF_RUNTIMES}, and no format below 16 bits is held exactly by all runtimes of models {'; '.join(named)}"
            hint = "Leave out a runtime, or name formats (docs/runtimes.md: what holds what)"
            yield Problem("RUNTIME-NO-PALETTE", where, what, hint)


def _refused(settings: "Settings") -> Iterator[Problem]:
    """Yield what a plan names and a runtime of a model refuses."""
    for plan, palette in _palettes(settings):
        for model, runtime in _pairs(settings):
            found = {name: runtime.holds(name) for name in palette if name != OF_RUNTIMES}
            refused = {name: verdict.reason for name, verdict in found.items() if verdict.status == "refused"}
            if refused:
                what = f"has {', '.join(refused)}, which {runtime.name} of model {model} cannot store: {next(iter(refused.values()))}"
                hint = f"Set palette: {OF_RUNTIMES}, name other formats, or take {runtime.name} out of models.{model}.runtimes"
                yield Problem("RUNTIME-REFUSED", f"plans.{plan}.palette", what, hint)


def _pairs(settings: "Settings") -> Iterator[tuple[str, Runtime]]:
    for name, model in settings.models.items():
        yield from ((name, runtime_named(runtime)) for runtime in model.runtimes)


def _out_of_reach(settings: "Settings") -> Iterator[Problem]:
    """Yield targets below the fewest bits in which the runtimes of a model store a choice."""
    for plan, palette in _palettes(settings):
        made = settings.every_plan[plan]
        if getattr(made, "sizes", None) != "stored" or made.target_avg_bits is None or palette == [OF_RUNTIMES]:
            continue
        for name, model in settings.models.items():
            runtimes = [runtime_named(runtime) for runtime in model.runtimes]
            low = min(_narrowest(palette, settings.sensitivity.embeddings or [], runtimes), default=0.0)
            if made.target_avg_bits < low:
                what = f"is {made.target_avg_bits:g}, and {', '.join(model.runtimes)} of model {name} store no format of the palette in fewer than {low:g}"
                hint = "Choose a larger target, or fewer runtimes"
                yield Problem("SEARCH-TARGET-OUT-OF-REACH", f"plans.{plan}.target_avg_bits", what, hint)


def _narrowest(palette: Sequence[str], embeddings: Sequence[str], runtimes: Sequence[Runtime]) -> Iterator[float]:
    """Yield the fewest bits of layers, and of embeddings in formats that all runtimes hold."""
    if not runtimes:
        return
    yield narrowest_bits(palette, runtimes)
    verdicts = [[runtime.holds(name, embedding=True) for runtime in runtimes] for name in embeddings]
    held = [each for each in verdicts if all(verdict.is_exact for verdict in each)]
    yield from (max(verdict.stored_bits for verdict in each) for each in held)
