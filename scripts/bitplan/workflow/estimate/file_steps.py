"""The work of the files that plans are compared with: the model's own in 16 bits, and llama.cpp's recipes."""

from collections.abc import Iterator

from bitplan.config.recipes import IMATRIX_SUFFIX
from bitplan.evaluate.timing import PROMPT_TOKENS, PROMPTS
from bitplan.workflow.estimate.case import LLAMA_LOADED, OPENED, TORCH, Case, Step, Work, added, times
from bitplan.workflow.inputs import BASELINES as LLAMA

# llama.cpp and ggml against torch on the same thread, built without the instructions of one processor (measured: docs/scaling.md).
LLAMA_FORWARD = 2.5
LLAMA_SCORE = 0.7
GGML_SHARE = 0.5


def llama_scoring(case: Case) -> Work:
    """Return the work of scoring a GGUF file on the evaluation text."""
    tokens = case.of("evaluation")
    llama = {"forward": LLAMA_FORWARD * tokens * case.blocks, "nll": LLAMA_SCORE * tokens}
    return added(OPENED, LLAMA_LOADED, {"score": float(tokens)}, llama)


def speed_work(case: Case) -> Work:
    """Return the work of timing two files in turn: rounds of a prompt and of what is generated, each in a process of its own."""
    section = case.settings.speed
    prompts = len(section.prompts or PROMPTS)
    rounds = section.warmup + section.repeats
    # A token that is generated alone reads every weight: it costs as much as several of a window.
    tokens = PROMPT_TOKENS + 6 * prompts * section.max_tokens
    one = {"python": 1.0, **LLAMA_LOADED, "forward": LLAMA_FORWARD * tokens * case.blocks}
    return added(TORCH, times(2.0 * rounds, one))


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
    yield Step("base_gguf", 1, work, stored, stored)
    for name in settings.baselines:
        recipe = name.removesuffix(IMATRIX_SUFFIX)
        kind = "" if recipe in ("f16", "bf16") else f"{recipe.split('_')[0]}_k" if "_k" in recipe else recipe
        size = stored if not kind else case.info.parameters * (int(recipe[1]) if recipe[1].isdigit() else 4) * 1.15 / 8
        made = case.quantizing({kind: GGML_SHARE}) if kind else {}
        yield Step("baseline_gguf", 1, added(TORCH, LLAMA_LOADED, made), 2 * stored, size)
        yield Step("baseline_perplexity", 1, llama_scoring(case), size + case.walk_memory("evaluation"), 1e4)
        yield Step("baseline_speed", 1, speed_work(case), size, 1e4, alone=True)
