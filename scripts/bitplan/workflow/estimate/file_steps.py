"""The work of the files that plans are compared with: the model's own in 16 bits, and llama.cpp's recipes."""

from collections.abc import Iterator

from bitplan.evaluate.timing import PROMPT_TOKENS, PROMPTS
from bitplan.runtimes.gguf.recipe_names import IMATRIX_SUFFIX
from bitplan.workflow.estimate.case import (
    FLOAT,
    LLAMA_BYTES,
    LLAMA_LOADED,
    OPENED,
    TORCH,
    Case,
    Step,
    Work,
    added,
    times,
)
from bitplan.workflow.inputs import BASELINES as LLAMA

# llama.cpp and ggml against torch on the same thread, built without the instructions of one processor (measured: docs/scaling.md).
LLAMA_FORWARD = 2.5
LLAMA_SCORE = 0.7
GGML_SHARE = 0.5


def llama_scoring(case: Case) -> Work:
    """Return the work of scoring a GGUF file on the evaluation text."""
    tokens = case.of("evaluation")
    llama = {"forward": LLAMA_FORWARD * tokens * case.blocks, "nll": LLAMA_SCORE * tokens}
    return added(TORCH, LLAMA_LOADED, {"score": float(tokens)}, llama)


def speed_step(case: Case, rule: str, file: float) -> Step:
    """Return the timing of two files in turn, of so many bytes: rounds of a prompt and of what is generated, each in a process of its own.

    Rounds are repeated while speeds vary, which they do where other work runs.
    """
    section = case.settings.speed
    tokens = PROMPT_TOKENS + len(section.prompts or PROMPTS) * section.max_tokens
    one = {"forward": 2 * LLAMA_FORWARD * tokens * case.blocks}
    # Runs are forked from a process that has loaded llama.cpp alone.
    work = added(TORCH, {"python": 1.0}, LLAMA_LOADED, times(section.warmup + section.repeats, one))
    more = times(max(0, section.max_repeats - section.repeats), one)
    return Step(rule, 1, work, file, 1e4, True, more, section.max_seconds)


def of_files(case: Case) -> Iterator[Step]:
    """Yield the model's own GGUF file and llama.cpp's recipes, scored and timed."""
    settings, stored = case.settings, case.info.parameters * 2.0
    if LLAMA not in settings.models[case.name].runtimes:
        return
    checked = float(settings.evaluation.length)
    window = added(case.walk(checked), {"score": checked, "forward": LLAMA_FORWARD * checked * case.blocks})
    # The model is opened to check the file, and by llama.cpp's own program to convert it.
    read = {"read": 4.0 * case.info.parameters * case.stored}
    work = added(times(2, OPENED), LLAMA_LOADED, read, window)
    yield Step("base_gguf", 1, work, stored + LLAMA_BYTES, stored)
    for name in settings.baselines:
        recipe = name.removesuffix(IMATRIX_SUFFIX)
        kind = "" if recipe in ("f16", "bf16") else f"{recipe.split('_')[0]}_k" if "_k" in recipe else recipe
        size = stored if not kind else case.info.parameters * (int(recipe[1]) if recipe[1].isdigit() else 4) * 1.15 / 8
        made = case.quantizing({kind: GGML_SHARE}) if kind else {}
        yield Step("baseline_gguf", 1, added(TORCH, LLAMA_LOADED, made), 3 * FLOAT * case.largest, size)
        yield Step(
            "baseline_perplexity", 1, llama_scoring(case), size + LLAMA_BYTES + case.walk_memory("evaluation"), 1e4
        )
        yield speed_step(case, "baseline_speed", size)
