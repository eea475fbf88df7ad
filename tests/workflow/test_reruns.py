"""What reruns after a change: exactly what the change is behind, by Snakemake's own table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workflow.conftest import summary

PLANS = (
    "adaptive-conservative",
    "adaptive-balanced",
    "adaptive-aggressive",
    "random-high-compression",
    "random-balanced",
    "random-high-precision",
    "genetic-w4a48",
    "genetic-6bit",
    "optimal-6bit",
    "sparsegpt-4bit",
)
OF_A_PLAN = {
    "config.json",
    "plan.json",
    "bits.json",
    "perplexity.json",
    "model.gguf",
    "gguf.json",
    "gguf_perplexity.json",
    "speed.json",
}
COMPARISON = {f"results/demo/comparison.{end}" for end in ("tsv", "txt", "html", "svg")}


# What a method writes besides.
MORE = {
    "genetic": ("history.svg", "config.smoothing.safetensors", "plan.smoothing.safetensors"),
    "sparsegpt": ("compressed", "layers.tsv"),
}


def plan_files(*plans: str, names: set[str] = frozenset(OF_A_PLAN)) -> set[str]:
    """The files of some plans; all of a plan's have what its method writes besides among them."""
    files = {f"results/demo/plans/{plan}/{name}" for plan in plans for name in names}
    more = {f"results/demo/plans/{plan}/{name}" for plan in plans for name in MORE.get(plan.split("-")[0], ())}
    return files | (more if names == OF_A_PLAN else set())


def baseline_files(*names: str) -> set[str]:
    return {f"results/demo/baselines/{baseline}/{name}" for baseline in ("f16", "q4_k_m") for name in names}


ADAPTIVE = [plan for plan in PLANS if plan.startswith("adaptive")]
GENETIC = [plan for plan in PLANS if plan.startswith("genetic")]
SPARSEGPT = [plan for plan in PLANS if plan.startswith("sparsegpt")]
OF_TABLE = [*GENETIC, *(plan for plan in PLANS if plan.startswith("optimal"))]
SENSITIVITY = {
    f"results/demo/{name}" for name in ("sensitivity.tsv", "sensitivity.smoothing.safetensors", "agreement.json")
}
SELECTION = {"results/demo/selection.safetensors"}
SHARDS = {
    f"results/demo/shards/{number}-of-2/{name}"
    for number in (1, 2)
    for name in ("sensitivity.tsv", "sensitivity.smoothing.safetensors")
}
FROM_STATISTICS = {
    f"results/demo/{name}" for name in ("layer_stats.tsv", "layer_stats.safetensors", "calibration.safetensors")
}
SCORES = plan_files(*PLANS, names={"perplexity.json", "gguf_perplexity.json"}) | baseline_files("perplexity.json")
GGUF_ON = {"model.gguf", "gguf.json", "gguf_perplexity.json", "speed.json"}
WITH_IMPORTANCE = plan_files(*PLANS, names={"perplexity.json", *GGUF_ON})

CASES = {
    "one plan's limit": (
        "config.yaml",
        "ppl_threshold: 0.1, target_avg_bits: 8.0",
        "ppl_threshold: 0.15, target_avg_bits: 8.0",
        plan_files("adaptive-balanced") | COMPARISON,
    ),
    "two ratios swapped": (
        "config.yaml",
        "mxfp4_ratio: 0.1, bf16_ratio: 0.4",
        "mxfp4_ratio: 0.4, bf16_ratio: 0.1",
        plan_files("random-high-precision") | COMPARISON,
    ),
    "a seed": ("config.yaml", "seed: 456", "seed: 457", plan_files("random-balanced") | COMPARISON),
    "evaluation windows": (
        "config.yaml",
        "sequences: 32",
        "sequences: 31",
        {"results/demo/evaluation.safetensors"} | SCORES | COMPARISON,
    ),
    "calibration windows": (
        "config.yaml",
        "sequences: 16",
        "sequences: 15",
        FROM_STATISTICS
        | SELECTION
        | SENSITIVITY
        | plan_files(*ADAPTIVE, *OF_TABLE, *SPARSEGPT)
        | WITH_IMPORTANCE
        | COMPARISON,
    ),
    "the importance matrix left out": (
        "config.yaml",
        "imatrix: true",
        "imatrix: false",
        SENSITIVITY | plan_files(*OF_TABLE) | WITH_IMPORTANCE | COMPARISON,
    ),
    "a search in a GGUF type": (
        "config.yaml",
        "ppl_threshold: 0.1, target_avg_bits: 8.0",
        "formats: [q4_k, q8_0], ppl_threshold: 0.1, target_avg_bits: 8.0",
        plan_files("adaptive-balanced") | COMPARISON,
    ),
    "a baseline with the importance matrix": (
        "config.yaml",
        "baselines: [f16, q4_k_m]",
        "baselines: [f16, q4_k_m, q4_k_m_imatrix]",
        {f"results/demo/baselines/q4_k_m_imatrix/{name}" for name in ("model.gguf", "perplexity.json", "speed.json")}
        | COMPARISON,
    ),
    "type of unquantized layers": (
        "config.yaml",
        "unquantized: f16",
        "unquantized: bf16",
        plan_files(*PLANS, names=GGUF_ON) | COMPARISON,
    ),
    "rounds of the speed comparison": (
        "config.yaml",
        "repeats: 3",
        "repeats: 4",
        plan_files(*PLANS, names={"speed.json"}) | baseline_files("speed.json") | COMPARISON,
    ),
    "what a missed target does": (
        "config.yaml",
        "mxfp4_ratio: 0.1, bf16_ratio: 0.4",
        "mxfp4_ratio: 0.1, check: {on_miss: fail}, bf16_ratio: 0.4",
        plan_files("random-high-precision", names={"bits.json"}) | COMPARISON,
    ),
    "tasks of lm-eval": (
        "config.yaml",
        "names: []",
        "names: [demo_memory]",
        plan_files(*PLANS, names={"tasks.json"}) | {"results/demo/tasks.json"} | COMPARISON,
    ),
    "formats of a search": (
        "config.yaml",
        "ppl_threshold: 0.1, target_avg_bits: 8.0",
        "formats: [mxfp4, mxfp6_e2m3], ppl_threshold: 0.1, target_avg_bits: 8.0",
        plan_files("adaptive-balanced") | COMPARISON,
    ),
    "a genetic plan's target": (
        "config.yaml",
        "target_compression: 0.75}",
        "target_compression: 0.8}",
        plan_files("genetic-w4a48") | COMPARISON,
    ),
    "alpha of the smoothing": (
        "config.yaml",
        "smooth_alpha: [0.5]",
        "smooth_alpha: [0.4, 0.5]",
        SENSITIVITY | plan_files(*OF_TABLE) | COMPARISON,
    ),
    "what is measured of the model's output": (
        "config.yaml",
        "anchors: all",
        "anchors: 2",
        SENSITIVITY | plan_files(*OF_TABLE) | COMPARISON,
    ),
    "shards of the measurement": (
        "config.yaml",
        "shards: 1",
        "shards: 2",
        SENSITIVITY | SHARDS | plan_files(*OF_TABLE) | COMPARISON,
    ),
    "the code of measured sensitivity": (
        "scripts/bitplan/measure/kld.py",
        "length - 1",
        "length - 2",
        SENSITIVITY | plan_files(*OF_TABLE) | COMPARISON,
    ),
    "an optimal plan's steps": (
        "config.yaml",
        "method: optimal, target_avg_bits: 6.0",
        "method: optimal, race: true, target_avg_bits: 6.0",
        plan_files("optimal-6bit") | COMPARISON,
    ),
    "windows that optimal plans are decided on": (
        "config.yaml",
        "selection: # windows of the calibration text after those of calibration: what optimal plans decide their steps on\n  length: 512 #",
        "selection: # windows\n  length: 500 #",
        SELECTION | plan_files("optimal-6bit") | COMPARISON,
    ),
    "the code of the race": (
        "scripts/bitplan/search/race.py",
        "TRIES = 200",
        "TRIES = 201",
        plan_files("optimal-6bit") | COMPARISON,
    ),
    "the memory that measuring may take": (
        "config.yaml",
        "memory_limit: 4GB",
        "memory_limit: 2GB",
        set(),
    ),
    "the code of the genetic search": (
        "scripts/bitplan/search/genetic.py",
        "0.95",
        "0.96",
        plan_files(*GENETIC) | COMPARISON,
    ),
    "a comment in the settings": ("config.yaml", "seed: 456", "seed:  456 ", set()),
    "the code of one method": (
        "scripts/bitplan/search/adaptive.py",
        "1e-9",
        "1e-8",
        plan_files(*ADAPTIVE) | COMPARISON,
    ),
    "the code of the report": (
        "scripts/bitplan/compare/table.py",
        "ordered = sorted(rows",
        "ordered = list(rows) and sorted(rows",
        COMPARISON,
    ),
    "a comment in the code": ("scripts/bitplan/plan.py", "import re\n", "# why\nimport re\n", set()),
    "a docstring": ("scripts/bitplan/search/random_mixed.py", '"""Random mixed precision', '"""Mixed precision', set()),
    "the calibration text": (
        "demo/calibration.txt",
        "calibration",
        "other words",
        FROM_STATISTICS
        | SELECTION
        | SENSITIVITY
        | plan_files(*ADAPTIVE, *OF_TABLE, *SPARSEGPT)
        | WITH_IMPORTANCE
        | COMPARISON,
    ),
    "widths of a compressed plan": (
        "config.yaml",
        "sparsegpt, target_avg_bits: [4.0], bit",
        "sparsegpt, target_avg_bits: [4.5], bit",
        plan_files(*SPARSEGPT) | COMPARISON,
    ),
    "the code of SparseGPT": (
        "scripts/bitplan/sparsegpt/sweep.py",
        "MOST_DAMPING = 1e4",
        "MOST_DAMPING = 1e5",
        plan_files(*SPARSEGPT) | COMPARISON,
    ),
    "a study": ("config.yaml", "sparsity: [0.0, 0.1,", "sparsity: [0.0, 0.15,", set()),
    "a plan added": (
        "config.yaml",
        "  adaptive-balanced:",
        "  mine: {method: random, seed: 1}\n  adaptive-balanced:",
        plan_files("mine") | COMPARISON,
    ),
}


@contextmanager
def edited(path: Path, before: str, after: str) -> Iterator[None]:
    text = path.read_text()
    assert before in text, f"{before!r} is not in {path.name}"
    path.write_text(text.replace(before, after, 1))
    try:
        yield
    finally:
        path.write_text(text)


def pending(folder: Path) -> set[str]:
    return {row["output_file"] for row in summary(folder) if row["plan"] != "no update"}


def test_a_finished_workflow_has_nothing_to_do(finished):
    assert pending(finished) == set()


@pytest.mark.parametrize("case", CASES)
def test_only_what_an_edit_is_behind_reruns(finished, case):
    name, before, after, wanted = CASES[case]
    with edited(finished / name, before, after):
        assert pending(finished) == wanted


def test_every_module_of_the_library_is_behind_some_rule():
    from bitplan.versions import SCRIPTS, code_versions

    commands = [path.name for path in SCRIPTS.glob("*.py")]
    behind = {name for command in commands for name in code_versions(command)}
    every = {path.relative_to(SCRIPTS).as_posix() for path in SCRIPTS.glob("bitplan/**/*.py")}
    assert every - behind == {"bitplan/versions.py"}, "only what makes the versions themselves may be behind none"
