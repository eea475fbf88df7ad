"""Models whose rows fit no K type, or no GGUF type at all: from what their description says to the file that llama.cpp runs."""

import json
import shutil
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from bitplan.core.errors import UserError
from bitplan.core.files import read_table
from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.evaluate.whole_model import open_whole_model
from bitplan.formats import ggml
from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.fitting import (
    BLOCKS,
    SUBSTITUTES,
    fitting_format,
    fitting_formats,
    fitting_lines,
    fitting_summary,
    substitution,
    unfitting_warning,
)
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, average_bits, read_plan, uniform_plan, write_plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.file import layer_names
from bitplan.runtimes.gguf.format_types import file_type
from bitplan.runtimes.gguf.recipe_importance import importance_by_tensor
from bitplan.runtimes.gguf.recipes import quantize_by_recipe
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.gguf.tensor_types import nearest_type, smallest_type
from bitplan.search.adaptive.algorithm import AdaptiveQuantizationSearch, AdaptiveSettings
from bitplan.search.allocation.constraints import Constraints, rule_of
from bitplan.search.allocation.problem import AVG_BITS, BYTES, Target, allocate, allocation_problem, reach
from bitplan.search.genetic.algorithm import GeneticSettings
from bitplan.search.genetic.rows import read_sensitivity
from bitplan.search.genetic.run import Target as GeneticTarget
from bitplan.search.genetic.run import genetic_plan
from bitplan.search.optimal.candidates import chosen_table
from bitplan.search.optimal.command import budgets_of
from bitplan.search.optimal.reach import problem_of_shapes
from bitplan.search.optimal.run import OptimalSearch, OptimalSettings, summary_of
from bitplan.sensitivity.candidates import MeasureSettings, wanted_pieces
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, activation_choices
from bitplan.sensitivity.measure import merged
from bitplan.sensitivity.run import make_table, write_sensitivity
from bitplan.sensitivity.table import read_sensitivity_table
from tests.conftest import ROOT

TEXT = ROOT / "demo" / "calibration.txt"
PALETTE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
WINDOWS = (32, 4)
# Hidden and intermediate size: rows of attention's output have 64 columns.
SHAPES = {
    "64": (64, 96),
    "as 896": (160, 352),
    "172": (172, 256),
    "down alone fits": (64, 512),
    "nothing fits": (172, 172),
}


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("columns", [1, 32, 40, 64, 128, 172, 256, 896, 2880, 4096])
def test_the_table_of_blocks_and_substitutes_is_that_of_the_formats_and_of_llama_cpps_types(name, columns):
    form, used = FORMATS[name], fitting_format(name, columns)
    assert not (FORMATS[used].fixed_block and columns % FORMATS[used].block)
    if form.family == "gguf":
        assert BLOCKS[name] == form.block
        kind = ggml.fallback(ggml.GGMLQuantizationType[TYPE_NAMES[form.name]], columns).name
        assert file_type(FORMATS[used]) == {"F16": "BF16"}.get(kind, kind)
    elif name in BLOCKS:
        assert BLOCKS[name] == form.block == 16
        assert used == ("bf16" if columns % 16 else name)
    else:
        assert used == name and name not in SUBSTITUTES


def test_formats_that_fall_to_one_substitute_are_one_and_those_asked_for_are_kept():
    assert fitting_formats(("q2_k", "q8_0", "q3_k", "q6_k"), 64) == {"q4_0": ("q2_k", "q3_k"), "q8_0": ("q8_0", "q6_k")}
    assert fitting_formats(PALETTE, 172) == {"bf16": PALETTE}
    assert substitution(("q2_k", "q3_k"), "q4_0", 64) == "q2_k, q3_k -> q4_0: 64 columns"
    assert substitution(("q8_0", "q6_k"), "q8_0", 64) == ""


def test_what_a_description_says_of_rows_that_do_not_fit():
    summary = fitting_summary([64, 64, 172, 512])
    assert [(part["columns"], part["layers"]) for part in summary] == [(64, 2), (172, 1)]
    lines = fitting_lines(summary, 4)
    assert lines[0].startswith("2 of 4 layers have rows of 64 columns: q2_k, q3_k, tq1_0, tq2_0 -> q4_0; q4_k -> q5_0")
    assert "1 of 4 layers have rows of 172 columns: no GGUF type has blocks that fit" in lines[1]
    assert fitting_summary([256, 512]) == [] and fitting_lines([], 2) == []


def test_one_warning_counts_each_layer_once_and_lengths_with_the_same_substitutes_together():
    requested = {"a": (64, PALETTE), "b": (96, PALETTE), "c": (172, ("q8_0",)), "d": (256, PALETTE)}
    warning = unfitting_warning(requested)
    assert (
        warning.startswith("3 of 4 layers")
        and "64, 96 columns: q2_k, q3_k -> q4_0; " in warning
        and "\n" not in warning
    )
    assert warning.endswith("172 columns: q8_0 -> bf16") and unfitting_warning({"d": (256, PALETTE)}) == ""


# ---------------------------------------------------------------------------------------------------------- real models


@dataclass(frozen=True)
class Odd:
    """A tiny real Llama, its full-precision GGUF, and its table of measured KL over the default palette."""

    opened: PreparedModel
    base: Path
    table: Path


def make_llama(folder: Path, hidden: int, intermediate: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": 2048}
    more = {"tie_word_embeddings": False, "max_position_embeddings": 128, "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(**heads, **sizes, **more)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "model" / name, folder / name)
    return folder


def measured(opened: PreparedModel, output: Path, measure: MeasureSettings | None = None, palette=PALETTE) -> Path:
    settings = SensitivitySettings((*activation_choices("tensor"), *map(Choice, palette)))
    measure = measure or MeasureSettings("all", embeddings=("q4_k", "q6_k"))
    make_table(opened, str(TEXT), *WINDOWS, settings, measure, None, output)
    return output


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    cache: dict[str, Odd] = {}

    def model(name: str) -> Odd:
        if name not in cache:
            folder = tmp_path_factory.mktemp("odd")
            checkpoint = Checkpoint.open(make_llama(folder / "model", *SHAPES[name]))
            opened = PreparedModel(checkpoint, describe(checkpoint), "fp32")
            convert(checkpoint, folder / "base.gguf")
            cache[name] = Odd(opened, folder / "base.gguf", measured(opened, folder / "s.tsv"))
        return cache[name]

    return model


def layer_bytes(path: Path, info) -> dict[str, int]:
    """The bytes of each layer in a file."""
    reader = GGUFReader(path)
    names = layer_names(reader, info)
    return {layer: int(tensor.n_bytes) for tensor in reader.tensors for layer in names.get(tensor.name, ())}


def searched(one: Odd) -> OptimalSearch:
    settings = OptimalSettings(PALETTE, correct=False)
    table = chosen_table(read_sensitivity_table(one.table), PALETTE, one.opened.info, one.table)
    return OptimalSearch(one.opened, table, settings, QuantizedWeights())


@pytest.mark.parametrize("name", SHAPES)
def test_each_layer_is_measured_in_what_fits_it_each_once_at_its_true_size(name, odd):
    one = odd(name)
    for layer in (*one.opened.info.quantizable, *(each for each in one.opened.info.layers if each.is_embedding)):
        rows = [r for r in read_table(one.table) if r["layer"] == layer.name and r["inputs"] == "bf16"]
        palette = ("q4_k", "q6_k") if layer.is_embedding else PALETTE
        expected = fitting_formats(palette, layer.shape[1])
        assert {row["format"]: tuple(row["asked"].split()) for row in rows} == expected and len(rows) == len(expected)
        for row in rows:
            assert int(row["bytes"]) == FORMATS[row["format"]].bits_of(layer.shape) / 8
            assert (float(row["kld"]) == 0) is (row["format"] == "bf16")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_plans_bits_are_those_of_its_file_which_llama_cpp_runs(name, share, odd, tmp_path):
    one = odd(name)
    info, search = one.opened.info, searched(one)
    low, high = (average_of(search, end) for end in search_reach(search))
    target = low + share * (high - low) + 1e-9
    plan, figures = search.run(search.budget(target))
    assert average_bits(plan, info).avg_bits <= target + 1e-9
    write_plan(
        tmp_path / "p.json",
        Plan(plan.layers, summary_of(plan, info, search.settings, target, figures)),
        LayerPlan(),
        info,
    )
    again = read_plan(tmp_path / "p.json", info)
    report = export_plan(one.base, tmp_path / "o.gguf", info, again)
    sizes = layer_bytes(tmp_path / "o.gguf", info)
    assert sum(sizes[layer] for layer in search.table.layers) == predicted_bytes(search, plan)
    types = {r["layer"]: r["written"] for r in report["tensors"] if r["layer"]}
    for layer in info.quantizable:
        form = FORMATS[plan.of(layer.name).wq]
        assert types[layer.name] == {"BF16": "F16"}.get(file_type(form), file_type(form))
    reference = make_reference(one.opened.model, TEXT, *WINDOWS, "fp32")
    simulated = summarize(score_plan(one.opened.model, info, again, reference, QuantizedWeights()))["kl_mean"]
    real = summarize(score_gguf(tmp_path / "o.gguf", reference, 1))["kl_mean"]
    # llama.cpp rounds activations to 8 bits inside its products.
    assert real == pytest.approx(simulated, rel=0.3, abs=3e-3)


def search_reach(search: OptimalSearch) -> tuple[float, float]:
    return reach(search.problem)[BYTES]


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_search_can_reach_is_known_without_its_table(name, odd):
    problem = problem_of_shapes(odd(name).opened.info, PALETTE, ("q4_k", "q6_k"))
    assert reach(problem)[BYTES] == search_reach(searched(odd(name)))


def average_of(search: OptimalSearch, size: float) -> float:
    info = search.model.info
    return (8 * size + 16 * (info.parameters - search.table.params.sum())) / info.parameters


def predicted_bytes(search: OptimalSearch, plan: Plan) -> float:
    table = search.table
    return sum(table.size[i, table.formats.index(plan.of(name).wq)] for i, name in enumerate(table.layers))


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "nothing fits"])
@pytest.mark.parametrize("recipe", ["q4_k_m", "q2_k"])
@pytest.mark.parametrize("weighed", [True, False])
def test_a_plan_of_a_recipes_size_is_as_large_as_the_recipes_own_file(name, recipe, weighed, odd, tmp_path):
    one = odd(name)
    info = one.opened.info
    columns = {layer.name: np.ones(layer.shape[1], np.float32) for layer in info.quantizable} if weighed else {}
    importance = importance_by_tensor(one.base, info, columns)
    quantize_by_recipe(one.base, tmp_path / "theirs.gguf", recipe, 1, importance=importance)
    search = searched(one)
    flags = Namespace(target_avg_bits=None, max_size=None, same_size_as=tmp_path / "theirs.gguf")
    _, budget = next(budgets_of(search, flags))
    theirs = layer_bytes(tmp_path / "theirs.gguf", info)
    assert budget == sum(theirs[name] for name in search.table.layers)
    plan, _ = search.run(budget)
    export_plan(one.base, tmp_path / "ours.gguf", info, plan)
    ours = layer_bytes(tmp_path / "ours.gguf", info)
    assert sum(ours.values()) == predicted_bytes(search, plan) <= budget


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("form", ["q2_k", "q4_k", "q6_k", "iq4_xs", "q8_0"])
def test_a_uniform_plan_takes_the_bytes_that_llama_cpp_takes_for_this_type(name, form, odd, tmp_path):
    one = odd(name)
    info, plan = one.opened.info, uniform_plan(one.opened.info, form)
    quantize_by_recipe(one.base, tmp_path / "theirs.gguf", "q8_0", 1, {r"blk\..*weight": file_type(FORMATS[form])})
    export_plan(one.base, tmp_path / "ours.gguf", info, plan)
    kinds = [
        {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors if t.name.startswith("blk")}
        for path in (tmp_path / "theirs.gguf", tmp_path / "ours.gguf")
    ]
    assert kinds[0] == kinds[1]
    inside = sum(8 * size for name, size in layer_bytes(tmp_path / "ours.gguf", info).items() if "layers" in name)
    assert average_bits(plan, info).avg_bits_layers == inside / sum(layer.params for layer in info.quantizable)


def test_the_report_of_a_file_says_what_was_asked(odd, tmp_path):
    one = odd("172")
    report = export_plan(one.base, tmp_path / "o.gguf", one.opened.info, uniform_plan(one.opened.info, "q4_k"))
    why = {record["layer"]: record["why"] for record in report["tensors"]}
    assert why["model.layers.0.self_attn.o_proj"] == "q4_k -> q5_0: 64 columns"
    assert why["model.layers.0.self_attn.q_proj"].startswith("q4_k -> bf16: 172 columns; not quantized")
    assert why["model.layers.0.mlp.down_proj"] == ""


def test_a_plan_of_the_search_says_which_formats_of_the_palette_a_substitute_stands_for(odd):
    search = searched(odd("down alone fits"))
    plan, _ = search.run(search_reach(search)[0])
    assert plan.of("model.layers.0.mlp.down_proj") == LayerPlan("q2_k")
    assert "substitute" not in plan.of("model.layers.0.mlp.down_proj").notes
    assert plan.of("model.layers.0.self_attn.q_proj").notes["substitute"] == "q2_k, q3_k -> q4_0: 64 columns"
    assert plan.of("lm_head").wq == "q5_0" and plan.of("lm_head").notes["substitute"] == "q4_k -> q5_0: 64 columns"


def test_the_whole_model_and_the_walk_have_the_same_substitutes(odd):
    one = odd("down alone fits")
    plan, weights = uniform_plan(one.opened.info, "q4_k"), QuantizedWeights()
    with open_whole_model(one.opened.model, one.opened.info, weights).under(plan) as module:
        before = module.model.layers[0].self_attn.q_proj.weight.detach().clone()
    name = "model.layers.0.self_attn.q_proj"
    plain = one.opened.checkpoint.read([f"{name}.weight"])[f"{name}.weight"].float()
    assert torch.equal(before, FORMATS["q5_0"].roundtrip(plain))


# -------------------------------------------------------------------------------------------------- other searches, tables


def test_a_genetic_palette_gives_each_layer_what_fits_it(odd):
    one = odd("down alone fits")
    table, info = read_sensitivity(one.table), one.opened.info
    for bits in (13.5, 14.5):
        target = GeneticTarget(None, bits, PALETTE, "kld")
        plan, _ = genetic_plan(table, None, info, target, "tensor", GeneticSettings(generations=5))
        assert average_bits(plan, info).avg_bits <= bits
        for layer in info.quantizable:
            choice = plan.of(layer.name)
            assert choice.wq in fitting_formats(PALETTE, layer.shape[1])
            assert ("substitute" in choice.notes) is (choice.wq not in PALETTE)
    with pytest.raises(UserError, match="SEARCH-TARGET-OUT-OF-REACH"):
        genetic_plan(table, None, info, replace(target, avg_bits=5.0), "tensor", GeneticSettings(generations=1))


def test_the_adaptive_search_counts_and_names_what_layers_really_get(odd):
    info = odd("172").opened.info
    alphas = {layer.name: float(i) for i, layer in enumerate(info.quantizable)}
    run = AdaptiveQuantizationSearch(info, alphas, lambda plan: 1.0, AdaptiveSettings(), ("q4_k", "q8_0"))
    plan = run.run()
    for layer in info.quantizable:
        assert plan.of(layer.name).wq in {fitting_format(form, layer.shape[1]) for form in ("q4_k", "q8_0", "bf16")}
    assert plan.summary["avg_bits"] == average_bits(plan, info).avg_bits
    assert all(sum(step["layers"].values()) == len(info.quantizable) for step in plan.summary["search_history"])


def test_rules_of_an_allocation_may_name_a_format_that_a_substitute_stands_for(odd):
    table = read_sensitivity_table(odd("down alone fits").table)
    rules = Constraints(
        protect=[rule_of("*.self_attn.q_proj=q6_k", "--protect"), rule_of("*.0.mlp.down_proj=q3_k", "--protect")]
    )
    floors = [rule_of("*.self_attn.v_proj=q5_k", "--floor")]
    problem = allocation_problem(table, replace(rules, floor=floors))
    plan = allocate(problem, [Target(AVG_BITS, 6.0)])[0].plan
    assert plan["model.layers.0.self_attn.q_proj"] == "q8_0" and plan["model.layers.0.mlp.down_proj"] == "q3_k"
    assert plan["model.layers.1.self_attn.v_proj"] in ("q5_1", "q8_0")
    wrong = Constraints(protect=[rule_of("*.0.mlp.down_proj=q4_0", "--protect")])
    with pytest.raises(UserError, match="has for it: q8_0, q2_k, q3_k, q4_k, q5_k, q6_k"):
        allocation_problem(table, wrong)


@pytest.mark.parametrize("name", ["172", "down alone fits"])
@pytest.mark.parametrize("anchors", ["1", "2"])
def test_shards_of_unlike_layers_merge_to_the_table_of_one_run_and_other_palettes_do_not(name, anchors, odd, tmp_path):
    one = odd(name)
    parts = [measured(one.opened, tmp_path / f"{i}.tsv", MeasureSettings(anchors, shard=(i, 3))) for i in (1, 2, 3)]
    measured(one.opened, tmp_path / "whole.tsv", MeasureSettings(anchors))
    write_sensitivity(tmp_path / "merged.tsv", *merged(parts, one.opened.info))
    assert (tmp_path / "merged.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    other = measured(one.opened, tmp_path / "o.tsv", MeasureSettings(anchors, shard=(3, 3)), PALETTE[1:])
    with pytest.raises(UserError, match="SENSITIVITY-UNEQUAL-SHARDS"):
        merged([*parts[:2], other], one.opened.info)


def test_anchors_are_chosen_of_what_fits_a_layer(odd):
    layers = {layer.name.rpartition(".")[2]: layer for layer in odd("172").opened.info.quantizable}
    chosen = [layers["o_proj"], layers["q_proj"], layers["down_proj"]]
    choices = [*activation_choices("tensor"), *map(Choice, PALETTE)]
    of_one, of_two = (wanted_pieces(chosen, choices, anchors) for anchors in ("1", "2"))
    assert [len(piece.rows) for piece in of_one] == [6, 3, 8], "two of activations each, and 4, 1 and 6 formats"
    assert [len(piece.carried) for piece in of_one] == [1, 0, 1]
    assert [len(piece.carried) for piece in of_two] == [2, 0, 2]


@pytest.mark.parametrize(("columns", "block"), [(64, 32), (172, 1), (512, 256)])
@pytest.mark.parametrize("most", [1e-1, 1e-2, 1e-3, 1e-4])
def test_types_that_stand_for_other_formats_fit_the_rows_too(columns, block, most):
    values = np.random.default_rng(0).standard_normal((16, columns)).astype(np.float32)
    assert block % ggml.block_of(ggml.GGMLQuantizationType[smallest_type(values, most)])[0] == 0
    kind = ggml.GGMLQuantizationType[nearest_type(values, LayerPlan("int2"), FORMATS["int2"])]
    assert block % ggml.block_of(ggml.fallback(kind, columns))[0] == 0


# -------------------------------------------------------------------------------------------------------------- commands


def test_a_description_says_before_anything_slow_which_layers_get_substitutes(odd, command, tmp_path):
    folder = odd("172").opened.checkpoint.folder
    result = command("describe_model.py", "--model", folder, "--output", tmp_path / "model.json")
    assert "2 of 14 layers have rows of 64 columns: q2_k, q3_k, tq1_0, tq2_0 -> q4_0" in result.stdout
    assert "10 of 14 layers have rows of 172 columns: no GGUF type" in result.stdout
    substitutes = json.loads((tmp_path / "model.json").read_text())["substitutes"]
    assert [(part["columns"], part["layers"]) for part in substitutes] == [(64, 2), (172, 10)]
    assert substitutes[0]["formats"]["q4_k"] == "q5_0" and set(substitutes[1]["formats"].values()) == {"bf16"}
    fits = command("describe_model.py", "--model", ROOT / "demo" / "model", "--output", tmp_path / "demo.json")
    assert "columns" not in fits.stdout and json.loads((tmp_path / "demo.json").read_text())["substitutes"] == []
