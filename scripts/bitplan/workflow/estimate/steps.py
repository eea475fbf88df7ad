"""The work of a model's steps, counted from its description and the settings: amounts of the units of `rates.py` for each rule.

Counts are those of docs/sensitivity.md (Cost) and docs/scaling.md. What a search will decide is not known before it: where the number of
evaluations depends on what is found, `USUAL` says how many are counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bitplan.config.recipes import IMATRIX_SUFFIX
from bitplan.config.settings import Settings, WindowSettings
from bitplan.evaluate.timing import PROMPT_TOKENS, PROMPTS
from bitplan.formats.fitting import fitting_formats
from bitplan.formats.pairs import parse_pair
from bitplan.models.layers import Layer, ModelInfo
from bitplan.search.plan_settings import PlanSettings
from bitplan.workflow.estimate.rates import QUANTIZE
from bitplan.workflow.inputs import BASELINES

# Evaluations of a search that depend on what it finds: the bundled model's adaptive search, halving in 32 steps, a correction that is not tried.
USUAL = {"linear": 10, "bisect": 6}
# llama.cpp and ggml against torch on the same thread, built without the instructions of one processor (measured: docs/scaling.md).
LLAMA_FORWARD = 2.5
LLAMA_SCORE = 0.7
GGML_SHARE = 0.5
# In units of a command that loads torch: a process that loads llama.cpp alone, one that draws charts, and the program that converts a model.
LLAMA_START, PAGE, CONVERSION = 0.3, 2.5, 0.5
MX = ("mxfp4", "mxfp8")


@dataclass(frozen=True)
class Step:
    """A kind of job: its rule, how many of it there are, and the work of one, {unit: amount}. `alone`: it takes the whole machine.

    `held` is the memory in bytes beside an open model, `disk` what one leaves.
    """

    rule: str
    jobs: int
    work: Mapping[str, float]
    held: float = 0.0
    disk: float = 0.0
    alone: bool = False


def windows_of(section: WindowSettings, available: int) -> int:
    """Return how many windows of a text of `available` tokens are used."""
    most = max(1, available // section.length)
    return most if section.sequences is None else min(most, section.sequences)


@dataclass(frozen=True)
class Case:
    """A model as the settings name it: its description, hidden and vocabulary sizes, bytes of a stored value, tokens of its texts {name: tokens}."""

    name: str
    info: ModelInfo
    settings: Settings
    hidden: int
    vocabulary: int
    stored: int = 2
    tokens: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return 1 + max(layer.block for layer in self.info.quantizable)

    @cached_property
    def values(self) -> int:
        """Weights inside the blocks."""
        return sum(layer.params for layer in self.info.quantizable)

    @property
    def block_values(self) -> float:
        """Weights of one block, on average."""
        return self.values / self.blocks

    def of(self, text: str) -> int:
        """Return the tokens of "calibration", "validation" or "evaluation" that are used."""
        section: WindowSettings = getattr(self.settings, text)
        available = self.tokens.get(text, section.length * (section.sequences or 1))
        return windows_of(section, available) * section.length

    def walk(self, tokens: float, times: float = 1) -> dict[str, float]:
        """Return the work of carrying tokens through all blocks, which are read once each time."""
        return {"read": times * self.values * self.stored, "forward": times * tokens * self.blocks}

    def states(self, text: str) -> float:
        """Return the bytes of the hidden states of a text, float32."""
        return 4.0 * self.of(text) * self.hidden

    def bits(self, plan: str) -> float:
        """Return about how many bits a plan's layers have, for quantizers and files."""
        found = self.settings.every_plan[plan]
        return float(getattr(found, "target_avg_bits", None) or 5.0) if not _is_list(found) else 4.0


def _is_list(plan: PlanSettings) -> bool:
    return isinstance(getattr(plan, "target_avg_bits", None), list)


def added(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of some amounts of work."""
    total: dict[str, float] = {}
    for part in parts:
        for unit, amount in part.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def quantizing(case: Case, formats: Mapping[str, float]) -> dict[str, float]:
    """Return the work of quantizing all layers, {format: share of the weights}."""
    return {f"{QUANTIZE}{name}": share * case.values for name, share in formats.items()}


def candidates_of(case: Case) -> dict[str, float]:
    """Return {weight format: times all layers are quantized in it} for one pass over the sensitivity table's candidates."""
    section, found = case.settings.sensitivity, {}
    columns = {layer.shape[1]: layer for layer in case.info.quantizable}
    for name in section.palette:
        kept = sum(1 for length in columns if fitting_formats([name], length)) / len(columns)
        weight = parse_pair(name).wq if kept else ""
        if weight:
            found[weight] = found.get(weight, 0.0) + kept
    return added(found, {"int4": 2.0})


def formats_of(plan: PlanSettings) -> dict[str, float]:
    """Return {format: share} of the weights that a plan of these settings is likely to have."""
    names = [parse_pair(name).wq for name in getattr(plan, "palette", []) or getattr(plan, "formats", [])]
    names = names or (["int4"] if plan.method == "genetic" else [*MX] if plan.method == "random" else [])
    middle = names[len(names) // 4 : len(names) - len(names) // 4] or names
    return {name: middle.count(name) / len(middle) for name in middle}


def _largest(case: Case) -> float:
    return max(layer.params for layer in case.info.layers)


def walk_memory(case: Case, text: str) -> float:
    """Return the bytes of a walk beside an open model: a block and a copy of its largest matrix in fp32, the output matrix, logits, states."""
    block = 4.0 * case.block_values + 8.0 * max(layer.params for layer in case.info.quantizable)
    logits = 4.0 * min(1 << 25, case.vocabulary * 512) * 2
    return block + case.stored * float(case.vocabulary * case.hidden) + logits + 3 * case.states(text)


def of_model(case: Case) -> Iterator[Step]:
    """Yield the steps that every model has."""
    hashing = {"open": 0.8, "read": 2.0 * case.info.parameters * case.stored}
    yield Step("model", 1, hashing, held=64e6, disk=1e5)
    spectra = sum(min(layer.shape) ** 2 * max(layer.shape) for layer in case.info.quantizable)
    opened = {"open": 1, "text": 1}
    told = {"layer_stats": "calibration", "validation": "validation", "evaluation": "evaluation"}
    for rule, text in told.items():
        more = (
            {"spectrum": float(spectra), "forward": 0.5 * case.of(text) * case.blocks} if rule == "layer_stats" else {}
        )
        if rule == "validation" and not any(_decides(plan) for plan in case.settings.every_plan.values()):
            continue
        yield Step(rule, 1, added(opened, case.walk(case.of(text)), more), walk_memory(case, text), case.states(text))


def _decides(plan: PlanSettings) -> bool:
    return getattr(plan, "correct", False) or getattr(plan, "refine", False)


def of_sensitivity(case: Case) -> Iterator[Step]:
    """Yield the sensitivity table, where a plan is searched from it."""
    section, tokens = case.settings.sensitivity, case.of("calibration")
    if not any(plan.method in ("genetic", "optimal") for plan in case.settings.plans.values()):
        return
    candidates = candidates_of(case)
    formats, looked = sum(candidates.values()), min(tokens, section.tokens) / tokens
    rows = added(
        case.walk(tokens, 2), {"forward": formats * 2 * looked * tokens * case.blocks}, quantizing(case, candidates)
    )
    priced = case.settings.priced
    prices = added(
        {"gradient": float(tokens * case.blocks), "read": float(case.values * case.stored)},
        {"draw": float(section.draws * tokens * case.blocks), "change": formats * tokens * case.blocks},
        {"product": formats * section.draws * tokens * case.blocks, "score": 0.15 * section.draws * tokens},
        quantizing(case, candidates),
    )
    measured = {1: 1.0, 2: 2.0, "all": formats}.get(section.anchors, 0.0)
    per_block = len(case.info.quantizable) / case.blocks
    carried = {
        "forward": measured * len(case.info.quantizable) * tokens * (case.blocks + 1) / 2,
        "score": measured * per_block * case.blocks * tokens,
    }
    share = 1 / section.shards
    work = added({"open": 1}, rows, prices if priced else {}, carried)
    states = case.states("calibration") * (section.draws if priced else 2)
    held = walk_memory(case, "calibration") + states + min(4e9, 8 * formats * case.block_values if priced else 0)
    rule = "sensitivity" if section.shards == 1 else "sensitivity_shard"
    one = {unit: amount * (share if unit != "open" else 1) for unit, amount in work.items()}
    yield Step(rule, section.shards, one, held, 1e5 * case.blocks)


def evaluation_work(case: Case, text: str, times: float, quantized: Mapping[str, float]) -> dict[str, float]:
    """Return the work of scoring plans on a text some times, all weights being quantized once."""
    tokens = case.of(text)
    return added(case.walk(tokens, times), {"score": times * tokens}, quantizing(case, quantized))


def of_search(case: Case, name: str) -> Step:
    """Return the search of a plan."""
    plan, held = case.settings.every_plan[name], walk_memory(case, "calibration")
    rule, opened = f"{plan.method}_plan", {"open": 1.0}
    if plan.method == "adaptive":
        times = USUAL[plan.search] * len(plan.formats) / 2
        work = evaluation_work(case, "calibration", times, dict.fromkeys(plan.formats, 1.0))
        return Step(rule, 1, added(opened, work), held + case.values, 1e5)
    if plan.method == "optimal":
        seen = evaluation_work(case, "calibration", 1, formats_of(plan))
        judged = evaluation_work(case, "validation", 1, {})
        refined = evaluation_work(case, "calibration", 100, {}) if plan.refine else {}
        return Step(rule, 1, added(opened, *([seen, judged] if plan.correct else []), refined), held + case.values, 1e5)
    if plan.method == "sparsegpt":
        work = added({"text": 1.0}, case.walk(case.of("calibration"), 2), rounding_work(case, 0, 1.0))
        return Step(rule, 1, added(opened, work), held + 12.0 * _largest(case), case.values * 0.6)
    return Step(rule, 1, {"open" if plan.method == "genetic" else "command": 1.3}, 64e6, 1e5)


def rounding_work(case: Case, descents: int, forwards: float) -> dict[str, float]:
    """Return the work of rounding all layers column by column: moments of their inputs, factors, the sweep and its descents.

    forwards: how often the moments of inputs are added up, in units of tokens x in^2.
    """
    layers, tokens = case.info.quantizable, case.of("calibration")
    moments = tokens * sum(_inputs(layer) for layer in layers) / case.block_values
    columns = sum(layer.shape[1] for layer in layers)
    sweeps = sum(layer.shape[0] * layer.shape[1] ** 2 for layer in layers)
    passes = (1 + descents) / 3
    return {"forward": forwards * moments, "column": passes * columns, "sweep": float(passes * sweeps)}


def _inputs(layer: Layer) -> float:
    """Return in^2 of a layer; those that share their inputs share the sum."""
    shared = (
        3 if layer.category in ("attn_q", "attn_k", "attn_v") else 2 if layer.category in ("mlp_gate", "mlp_up") else 1
    )
    return layer.shape[1] ** 2 / shared


def of_rounding(case: Case, name: str) -> Iterator[Step]:
    """Yield the rounding of a plan's weights, where it is not to nearest."""
    how, section = case.settings.rounding_of(name), case.settings.rounding
    if how == "nearest":
        return
    tokens, aims = case.of("calibration"), section.reference_share > 0
    walks = case.walk(tokens, 5 if aims else 3)
    tuned = (
        {"gradient": 2.0 * section.steps * min(section.tokens_per_step, tokens) * case.blocks} if how == "tuned" else {}
    )
    work = added({"open": 1}, walks, rounding_work(case, section.descents, 3 if aims else 1), tuned)
    held = walk_memory(case, "calibration") + 12.0 * max(layer.shape[1] for layer in case.info.quantizable) ** 2 * 4
    rule = "rounded_genetic_plan" if case.settings.every_plan[name].method == "genetic" else "rounded_plan"
    yield Step(rule, 1, work, held, case.values * 1.0)


def of_plan(case: Case, name: str) -> Iterator[Step]:
    """Yield the steps of a plan: search, rounding, check, scores, and its files in every runtime of the model."""
    plan = case.settings.every_plan[name]
    rounded = case.settings.rounding_of(name) != "nearest" or plan.method == "sparsegpt"
    quantized = {} if rounded else formats_of(plan)
    yield of_search(case, name)
    yield from of_rounding(case, name)
    yield Step("bits", 1, {"command": 1.0}, 16e6, 1e4)
    scored = evaluation_work(case, "evaluation", 1, quantized)
    yield Step("plan_perplexity", 1, added({"open": 1}, scored), walk_memory(case, "evaluation"), 1e4)
    file = case.info.parameters * min(case.bits(name), 8.5) / 8
    for runtime in case.settings.models[case.name].runtimes:
        written = {"read": 2.0 * case.info.parameters * case.stored}
        yield Step(
            f"plan_{runtime}", 1, added({"open": 1.0}, written, quantizing(case, quantized)), 6.0 * _largest(case), file
        )
        yield from _in_runtime(case, runtime, file)


def _in_runtime(case: Case, runtime: str, file: float) -> Iterator[Step]:
    tokens = case.of("evaluation")
    if runtime == BASELINES:
        yield Step("plan_runtime_perplexity", 1, llama_scoring(case), file + walk_memory(case, "evaluation"), 1e4)
        yield Step("plan_speed", 1, speed_work(case), file, 1e4, alone=True)
    elif runtime == "compressed_tensors":
        work = added({"open": 1.2}, evaluation_work(case, "evaluation", 1, {}))
        yield Step("plan_runtime_perplexity", 1, work, 4.4 * case.info.parameters + 4.0 * tokens * case.hidden, 1e4)


def llama_scoring(case: Case) -> dict[str, float]:
    """Return the work of scoring a GGUF file on the evaluation text."""
    tokens = case.of("evaluation")
    return {"open": 1.0, "forward": LLAMA_FORWARD * tokens * case.blocks, "score": (1 + LLAMA_SCORE) * tokens}


def speed_work(case: Case) -> dict[str, float]:
    """Return the work of timing two files in turn: rounds of a prompt and of what is generated, each in a process of its own."""
    section = case.settings.speed
    prompts = len(section.prompts or PROMPTS)
    rounds = section.warmup + section.repeats + 1
    # A token that is generated alone reads every weight: it costs as much as several of a window.
    tokens = PROMPT_TOKENS + 6 * prompts * section.max_tokens
    return {"command": 1 + 2 * LLAMA_START * rounds, "forward": 2.0 * rounds * LLAMA_FORWARD * tokens * case.blocks}


def of_files(case: Case) -> Iterator[Step]:
    """Yield the model's own GGUF file and llama.cpp's recipes, scored and timed."""
    settings, stored = case.settings, case.info.parameters * 2.0
    if BASELINES not in settings.models[case.name].runtimes:
        return
    window = added(case.walk(settings.evaluation.length), {"score": 2.0 * settings.evaluation.length})
    work = added({"open": 1 + CONVERSION, "read": 4.0 * case.info.parameters * case.stored}, window)
    yield Step("base_gguf", 1, work, stored, stored)
    for name in settings.baselines:
        recipe = name.removesuffix(IMATRIX_SUFFIX)
        kind = "" if recipe in ("f16", "bf16") else f"{recipe.split('_')[0]}_k" if "_k" in recipe else recipe
        share = {kind: GGML_SHARE} if kind else {}
        size = stored if not kind else case.info.parameters * (int(recipe[1]) if recipe[1].isdigit() else 4) * 1.15 / 8
        yield Step("baseline_gguf", 1, added({"command": 1.2}, quantizing(case, share)), 2 * stored, size)
        yield Step("baseline_perplexity", 1, llama_scoring(case), size + walk_memory(case, "evaluation"), 1e4)
        yield Step("baseline_speed", 1, speed_work(case), size, 1e4, alone=True)


def steps_of(case: Case) -> list[Step]:
    """Return every step of a model up to its comparison, in about the order in which they run."""
    plans = [step for name in case.settings.plans for step in of_plan(case, name)]
    page = Step("comparison", 1, {"command": PAGE}, 128e6, 2e6)
    return [*of_model(case), *of_files(case), *of_sensitivity(case), *plans, page]
