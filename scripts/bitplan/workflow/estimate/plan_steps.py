"""The work of a plan's steps: its search, its rounding, its check, its scores, its files in the runtimes.

What a search will decide is not known before it: where the number of evaluations depends on what is found, `USUAL` says how many are counted.
"""

from collections.abc import Iterator, Mapping

from bitplan.config.settings import Settings
from bitplan.core.sizes import parse_size
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_format
from bitplan.formats.pairs import parse_pair
from bitplan.formats.sizes import SIZES
from bitplan.search.plan_settings import PlanSettings
from bitplan.workflow.estimate.case import (
    FLOAT,
    GGUF,
    LLAMA_BYTES,
    OPENED,
    SOLVER,
    TORCH,
    Case,
    Step,
    Work,
    added,
    times,
)
from bitplan.workflow.estimate.file_steps import LLAMA, llama_scoring, speed_step
from bitplan.workflow.estimate.rates import QUANTIZE

# Evaluations of an adaptive search with two formats: the bundled model's, trying every step and halving.
USUAL = {"linear": 10, "bisect": 6}
MX = ("mxfp4", "mxfp8")
# Bits of a plan that says nothing of them, and how far from its bits the formats are that it is likely to have.
USUAL_BITS, NEAR = 5.0, 1.5
W4, A8 = "int4", "int8_tensor"
# Types that are tried for a layer with a width per channel, and rows of it that they are tried on: runtimes/gguf/tensor_types.py.
TRIED, TRIED_ROWS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"), 256
# Evaluations before a correction: the plan on the calibration text, the plan and a step on half of the validation text.
SEEN, JUDGED = 1, 2
# Columns that few tokens reach are rounded once for each half of the text besides: rounding/held_out.py.
TOKENS_PER_COLUMN = 2
# Multiplications of out x in^2 that rounding a layer takes: three errors, an aim of three, half in the sweep, one and a half in two descents and
# one before them; and of in^3 in its factors.
PRODUCTS, AIMED, FACTORS = 6.0, 3.0, 2.0


def bits_of(plan: PlanSettings) -> float:
    """Return about how many bits the layers of a plan of these settings have: its target, or that of the recipe whose size it has."""
    wanted, recipe = getattr(plan, "target_avg_bits", None), getattr(plan, "same_size_as", None) or ""
    digits = [int(letter) for letter in recipe if letter.isdigit()]
    if wanted is None:
        # K recipes have some layers in more bits than their name says.
        return 16.0 if recipe in ("f16", "bf16") else digits[0] + 0.8 if digits else USUAL_BITS
    return float(wanted[0] if isinstance(wanted, list) else wanted)


def formats_of(plan: PlanSettings) -> dict[str, float]:
    """Return {format: share} of the weights that a plan of these settings is likely to have: those of its palette that are near its bits."""
    names = [parse_pair(name).wq for name in getattr(plan, "palette", []) or getattr(plan, "formats", [])]
    names = names or ([W4] if plan.method == "genetic" else [*MX] if plan.method == "random" else [])
    apart = {name: abs(SIZES[name].bits_per_value() - bits_of(plan)) for name in names if name in SIZES}
    near = [name for name in apart if apart[name] <= max(NEAR, min(apart.values()))]
    # A search with thresholds tries all of its formats.
    chosen = near if near and plan.method in ("optimal", "genetic") else names
    return {name: chosen.count(name) / len(chosen) for name in chosen}


def inputs_of(plan: PlanSettings) -> dict[str, float]:
    """Return {format: share} of the layers whose inputs a plan of these settings is likely to quantize."""
    if plan.method in ("adaptive", "random"):
        # A search begins with no layer quantized and ends where all may be: half of them on average.
        names = [name for name in formats_of(plan) if name.startswith("mx")]
        return {name: 0.5 / max(1, len(formats_of(plan))) for name in names}
    named = [parse_pair(name).aq for name in getattr(plan, "palette", [])]
    named = [name for name in named if name != UNQUANTIZED] or ([A8] if plan.method == "genetic" and not named else [])
    return {name: 1 / len(named) for name in named}


def timed_formats(settings: Settings) -> list[str]:
    """Return the formats whose quantizers the steps of the settings run."""
    plans = [name for plan in settings.plans.values() for name in (*formats_of(plan), *inputs_of(plan))]
    table = [parse_pair(name).wq for name in settings.sensitivity.palette]
    recipes = [f"{name.split('_')[0]}_k" for name in settings.baselines if "_k" in name]
    return sorted({*plans, *table, *recipes, *(settings.sensitivity.embeddings or ()), W4})


def outside(case: Case, plan: PlanSettings) -> Work:
    """Return the work of quantizing the output matrix, where a plan of these settings may choose its format."""
    formats = case.settings.sensitivity.embeddings if plan.method == "optimal" else None
    return {f"{QUANTIZE}{formats[-1]}": float(case.vocabulary * case.hidden)} if formats else {}


def rounds(settings: Settings, name: str) -> bool:
    """Return whether a plan's weights are stored with it, not rounded to nearest by each step."""
    return settings.rounding_of(name) != "nearest" or settings.every_plan[name].method == "sparsegpt"


# -- searches ----------------------------------------------------------------------------------------------------------


def _adaptive(case: Case, name: str) -> Work:
    plan = case.settings.every_plan[name]
    evaluations, tokens = USUAL[plan.search] * len(plan.formats) / 2, case.of("calibration")
    one = added(
        case.evaluation("calibration", "nll"),
        case.restoring(formats_of(plan)),
        case.quantizing_inputs(tokens, inputs_of(plan)),
    )
    return added(case.quantizing(formats_of(plan)), times(evaluations, one))


def _optimal(case: Case, name: str) -> Work:
    plan = case.settings.every_plan[name]
    if not (plan.correct or plan.refine):
        return {}
    formats, half = formats_of(plan), times(0.5, case.evaluation("validation"))
    work = added(case.quantizing(formats), times(SEEN, case.evaluation("calibration")), times(JUDGED, half))
    return added(work, times(JUDGED, case.restoring(formats)), outside(case, plan))


def _corrected(case: Case, name: str) -> Work:
    """Return the work of a correction, which is tried where the text could show what it gains: an evaluation for each step."""
    plan = case.settings.every_plan[name]
    one = added(case.evaluation("calibration"), case.restoring(formats_of(plan)))
    return times(plan.swaps, one) if plan.correct else {}


def _sparsegpt(case: Case, name: str) -> Work:
    tokens = case.of("calibration")
    walks = added(case.walk(tokens), {"forward": float(tokens * case.blocks)})
    return added(walks, case.moments(tokens), columns_work(case, tokens, 1 / 3, 0.0, {}))


def of_search(case: Case, name: str) -> Step:
    """Return the search of a plan."""
    plan, held = case.settings.every_plan[name], case.walk_memory("calibration")
    rule = f"{plan.method}_plan"
    if plan.method == "adaptive":
        return Step(rule, 1, added(OPENED, _adaptive(case, name)), held + case.values, 1e5)
    if plan.method == "optimal":
        work, perhaps = added(OPENED, SOLVER, _optimal(case, name)), _corrected(case, name)
        return Step(rule, 1, work, held + case.values, 1e5, perhaps=perhaps)
    if plan.method == "sparsegpt":
        factors = 3 * FLOAT * max(layer.shape[1] for layer in case.info.quantizable) ** 2
        work = added(OPENED, _sparsegpt(case, name))
        return Step(rule, 1, work, held + factors + 3 * FLOAT * case.largest, case.values * 0.6)
    start = added(TORCH, SOLVER) if plan.method == "genetic" else TORCH
    return Step(rule, 1, start, 32e6, 1e5)


# -- rounding ----------------------------------------------------------------------------------------------------------


def columns_work(case: Case, tokens: int, passes: float, aimed: float, formats: Mapping[str, float]) -> Work:
    """Return the work of rounding all layers column by column: factors, the sweep and its descents, in shares `passes` of one with two descents.

    aimed: multiplications of out x in^2 besides. formats: {format: share of the weights}, if the layers are rounded to nearest beside, and span
    by span in the sweep; a layer with few tokens for its columns is then rounded for each half of the text, too.
    """
    work: Work = {}
    for layer in case.info.quantizable:
        rows, columns = layer.shape
        rounded = 3 if formats and tokens < TOKENS_PER_COLUMN * columns else 1
        multiplied = (rounded * PRODUCTS * passes + aimed) * rows * columns**2 + rounded * FACTORS * columns**3
        own = {"column": rounded * passes * columns, "rounded": rounded * passes * rows * columns}
        found = {
            f"{QUANTIZE}{fitting_format(form, columns)}": 2.0 * rounded * share * layer.params
            for form, share in formats.items()
        }
        work = added(work, own, {"multiply": multiplied}, found)
    return work


def rounding_work(case: Case, name: str) -> Work:
    """Return the work of rounding a plan: moments of the inputs, under the plan and in the full-precision model, columns, outputs."""
    section, tokens, plan = case.settings.rounding, case.of("calibration"), case.settings.every_plan[name]
    once, aims = float(tokens * case.blocks), bool(section.reference_share)
    # Moments and outputs; with an aim the full-precision model's outputs, and the inputs of both models, those of the first block being equal.
    forwards = (5 * case.blocks - 2 if aims else 2 * case.blocks) * float(tokens)
    cross = {"multiply": (1 - 1 / case.blocks) * case.moments(tokens)["multiply"]} if aims else {}
    steps = float(section.steps * min(section.tokens_per_step, tokens) * case.blocks)
    tuned = {"gradient": steps, "draw": steps} if case.settings.rounding_of(name) == "tuned" else {}
    return added(
        case.reading(),
        {"forward": forwards if aims else 2 * once},
        case.moments(tokens),
        cross,
        columns_work(case, tokens, (1 + section.descents) / 3, AIMED if aims else 0.0, formats_of(plan)),
        tuned,
    )


def of_rounding(case: Case, name: str) -> Iterator[Step]:
    """Yield the rounding of a plan's weights, where it is not to nearest."""
    if case.settings.rounding_of(name) == "nearest":
        return
    columns = max(layer.shape[1] for layer in case.info.quantizable)
    # Judged on tokens held out: both halves' moments, H or its factors; elements, G, the change and the drift.
    held = case.walk_memory("calibration", 5) + 3 * FLOAT * columns**2 + 4 * FLOAT * case.largest
    rule = "rounded_genetic_plan" if case.settings.every_plan[name].method == "genetic" else "rounded_plan"
    yield Step(rule, 1, added(OPENED, rounding_work(case, name)), held, case.values * 1.0)


# -- scores and files --------------------------------------------------------------------------------------------------


def of_plan(case: Case, name: str) -> Iterator[Step]:
    """Yield the steps of a plan: search, rounding, check, scores, and its files in every runtime of the model."""
    plan = case.settings.every_plan[name]
    formats = formats_of(plan)
    layers = case.restoring(formats) if rounds(case.settings, name) else case.quantizing(formats)
    weights = added(layers, outside(case, plan))
    yield of_search(case, name)
    yield from of_rounding(case, name)
    yield Step("bits", 1, TORCH, 0.0, 1e4)
    inputs = case.quantizing_inputs(case.of("evaluation"), inputs_of(plan))
    scored = added(OPENED, case.evaluation("evaluation"), weights, inputs)
    yield Step("plan_perplexity", 1, scored, case.walk_memory("evaluation"), 1e4)
    file = _file_bytes(case, plan)
    written = added(case.quantizing(formats), outside(case, plan), _converted(case, plan))
    for runtime in case.settings.models[case.name].runtimes:
        # The codes of a rounded plan are put into blocks in about the time in which a quantizer finds them.
        read = {"read": 4.0 * case.info.parameters * case.stored}
        yield Step(f"plan_{runtime}", 1, added(TORCH, GGUF, read, written), 6 * FLOAT * case.largest, file)
        yield from _in_runtime(case, runtime, file)


def _file_bytes(case: Case, plan: PlanSettings) -> float:
    """Return about how large a plan's file is: its limit, or what the bits of its layers come to."""
    limit = getattr(plan, "max_size", None)
    return float(parse_size(limit)) if limit else case.info.parameters * min(bits_of(plan), 8.5) / 8


def _converted(case: Case, plan: PlanSettings) -> Work:
    """Return the work of converting a compressed model to a file, which an export of one begins with, and of trying types on some rows of each layer."""
    if plan.method != "sparsegpt":
        return {}
    tried = {form: TRIED_ROWS / max(TRIED_ROWS, *(layer.shape[0] for layer in case.info.quantizable)) for form in TRIED}
    return added({"model": 1.0}, OPENED, case.quantizing(tried))


def _in_runtime(case: Case, runtime: str, file: float) -> Iterator[Step]:
    held = file + case.walk_memory("evaluation")
    if runtime == LLAMA:
        yield Step("plan_runtime_perplexity", 1, llama_scoring(case), held + LLAMA_BYTES, 1e4)
        yield speed_step(case, "plan_speed", file)
    elif runtime == "compressed_tensors":
        work = added(OPENED, case.evaluation("evaluation"))
        yield Step("plan_runtime_perplexity", 1, work, 4.4 * case.info.parameters + held, 1e4)
    yield Step("plan_card", 1, TORCH, 0.0, 1e4)
