"""What an estimate counts of a step is what the step's command does: each command runs on a small model while its work is counted."""

import importlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitplan.config.completion import completed
from bitplan.config.settings import parse_settings
from bitplan.models.layers import model_info
from bitplan.workflow.estimate.case import Case, Step
from bitplan.workflow.estimate.plan_steps import USUAL
from bitplan.workflow.estimate.steps import steps_of
from tests.conftest import ROOT
from tests.unit.workflow.estimate.meter import metered

LENGTH, WINDOWS, DRAWS, TOKENS, BLOCKS = 32, 8, 3, 64, 2
MODEL = "model.json"
COMPUTE = ("--dtype", "fp32", "--device", "cpu", "--threads", "1")
SETTINGS = {
    "plans": {
        "best": {"method": "optimal", "target_avg_bits": 8, "rounding": "feedback", "palette": ["q4_k", "q8_0"]},
        "alpha": {"method": "adaptive", "formats": ["mxfp8"], "step_size": 100.0},
        "pruned": {"method": "sparsegpt", "target_avg_bits": [4.0]},
    },
    "sensitivity": {"palette": ["q4_k", "q8_0"], "draws": DRAWS, "tokens": TOKENS, "embeddings": ["q8_0"]},
    **{text: {"length": LENGTH, "sequences": WINDOWS} for text in ("calibration", "validation", "evaluation")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a random model of two blocks whose rows fit K types."""
    import shutil

    place = tmp_path_factory.mktemp("counted")
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=2048, tie_word_embeddings=True, **sizes)).save_pretrained(place / "model")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "model" / name, place / "model" / name)
    return place


def counted(name: str, *words: object) -> Counter:
    """Run a command in this process, and return the work that it did."""
    command = importlib.import_module(name)
    with metered() as work:
        command.main(command.build_parser().parse_args([str(word) for word in words]))
    return work


def commands(folder: Path) -> dict[str, list]:
    """Each rule's command in a folder, with its flags, in the order in which they need each other: {rule: words}."""
    text = ROOT / "demo" / "calibration.txt"
    windows = ("--length", LENGTH, "--sequences", WINDOWS)
    opened = ("--model", folder / MODEL, *COMPUTE)
    seen, fresh, stats = (folder / name for name in ("seen.safetensors", "fresh.safetensors", "stats.tsv"))
    table, imatrix = folder / "table.tsv", ("--imatrix", folder / "stats.safetensors")
    both = ("--palette", "q4_k", "--palette", "q8_0", "--embeddings", "q8_0", "--smooth-alpha", "0.5")
    plans = {name: folder / name / "plan.json" for name in ("best", "rounded", "alpha", "pruned")}

    def written(name: str) -> tuple:
        return "--output-plan", plans[name], "--output-config", plans[name].with_name("config.json")

    return {
        "model": ["describe_model", "--model", folder / "model", "--output", folder / MODEL],
        "layer_stats": ["layer_stats", *opened, *windows, "--calibration", text, "--output", stats, "--save-text", seen],
        "evaluation": ["teacher", *opened, *windows, "--text", text, "--skip-tokens", 256, "--output", fresh],
        "sensitivity": ["sensitivity", *opened, "--layer-stats", stats, "--calibration", seen, *imatrix, *both,
                        "--metric", "gradient", "--draws", DRAWS, "--tokens", TOKENS, "--output", table],
        "optimal_plan": ["optimal_search", *opened, "--sensitivity", table, "--calibration", seen, "--validation", fresh, *imatrix,
                         "--palette", "q4_k", "q8_0", "--target-avg-bits", 8, "--output-plan", plans["best"]],
        "rounded_plan": ["round_model", *opened, "--plan", plans["best"], "--calibration", seen, "--output", folder / "rounded"],
        "plan_perplexity": ["perplexity", *opened, "--plan", plans["rounded"], "--text", fresh, "--output", folder / "p.json"],
        "adaptive_plan": ["adaptive_quantization_search", *opened, "--layer-stats", stats, "--calibration", seen,
                          "--formats", "mxfp8", "--step-size", 100, *written("alpha")],
        "sparsegpt_plan": ["sparsegpt_enhanced", folder / MODEL, seen, *COMPUTE, "--target_avg_bits", 4, *written("pruned")],
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(folder) -> dict[str, Counter]:
    """The work that each rule's command did, {rule: {unit: amount}}."""
    return {rule: counted(*words) for rule, words in commands(folder).items()}


@pytest.fixture(scope="module")
def steps(folder, done) -> dict[str, Step]:
    """The steps that are estimated, by rule; of plans the first of its method."""
    texts = {"calibration": "c.txt", "evaluation": "e.txt"}
    settings = parse_settings(completed({**SETTINGS, "models": {"m": {"path": "m", **texts}}}, ROOT))
    case = Case("m", model_info(folder / MODEL), settings, hidden=256, vocabulary=2048, stored=4)
    return {step.rule: step for step in reversed(steps_of(case))}


UNITS = ("forward", "gradient", "draw", "change", "product", "label", "moment", "column", "rounded", "eigenvalues")
RULES = (
    "model",
    "layer_stats",
    "evaluation",
    "sensitivity",
    "optimal_plan",
    "sparsegpt_plan",
    "rounded_plan",
    "plan_perplexity",
)
# What is estimated in a unit that stands for something else, too.
BY_OTHERS = {
    ("layer_stats", "moment"),
    ("sensitivity", "moment"),
    ("sparsegpt_plan", "column"),
    ("sparsegpt_plan", "rounded"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_counted_as_its_command_works(folder, done, steps, rule):
    block = sum(layer.params for layer in model_info(folder / MODEL).quantizable) / BLOCKS
    for unit in (each for each in UNITS if (rule, each) not in BY_OTHERS):
        size = block if unit in ("change", "product") else 1
        assert steps[rule].work.get(unit, 0.0) * size == pytest.approx(done[rule][unit], rel=0.02), unit


@pytest.mark.parametrize("rule", ["optimal_plan", "plan_perplexity"])
def test_scores_are_counted_in_two_passes_through_the_output_matrix(done, steps, rule):
    assert 2 * steps[rule].work["score"] == pytest.approx(done[rule]["logits"], rel=0.05)


@pytest.mark.parametrize("rule", ["sensitivity", "rounded_plan", "optimal_plan"])
def test_quantized_values_are_counted(done, steps, rule):
    def quantized(work) -> float:
        return sum(values for unit, values in work.items() if unit.startswith("quantize:") and "_tensor" not in unit)

    assert quantized(steps[rule].work) == pytest.approx(quantized(done[rule]), rel=0.3)


def test_an_evaluation_of_the_adaptive_search_is_counted_without_kl(done, steps):
    each = done["adaptive_plan"]["forward"] / (BLOCKS * LENGTH * WINDOWS)
    assert each == round(each)
    work, counted = steps["adaptive_plan"].work, USUAL["linear"] / 2
    assert work["forward"] / counted == done["adaptive_plan"]["forward"] / each
    assert work["nll"] / counted == pytest.approx(done["adaptive_plan"]["logits"] / each, rel=0.05)
