"""SparseGPT on whole models: blocks on the outputs of compressed ones, checkpoints that transformers loads, plans, sizes, files."""

import json
from dataclasses import replace

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_hidden, plan_nll
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.compressed import CompressedLayer, pack_mask
from bitplan.plans.plan import LayerPlan, average_bits, read_plan, uniform_plan, write_config, write_plan
from bitplan.reference.opening import prepare_model
from bitplan.reference.reference import make_reference
from bitplan.rounding.channel_grid import Quantizer
from bitplan.rounding.sweep import Pruning
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import base_file, export_plan
from bitplan.runtimes.gguf.options import GGUFOptions
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from bitplan.search.sparsegpt.layer import ChannelSettings, SparseGPT
from bitplan.search.sparsegpt.model_settings import ModelSettings, part_of
from bitplan.search.sparsegpt.run import compressed_plan
from tests.families import FAMILIES, make_family
from tests.unit.search.opened_models import HALF, Opened, damage, plain_nll


@pytest.fixture(scope="module", params=["opt", "llama", "qwen2", "gpt2", "gemma2", "mixtral"])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made = Opened(make_family(request.param, folder / "model"))
    return request.param, made, made.plan(folder / "compressed")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


def test_transformers_loads_the_compressed_checkpoint_and_scores_it_as_the_plan(family, tmp_path):
    _, made, plan = family
    wanted = plan_nll(made.model, made.info, plan, made.reference, QuantizedWeights()).double().mean().item()
    write_checkpoint(tmp_path / "out", made.checkpoint, made.info, plan, QuantizedWeights(limit=0))
    assert plain_nll(tmp_path / "out", made.reference.tokens) == pytest.approx(wanted, abs=1e-6)
    assert describe(Checkpoint.open(tmp_path / "out")).layers == made.info.layers


def test_every_layer_is_pruned_to_its_share_and_holds_its_target(family):
    _, made, plan = family
    for layer in made.info.quantizable:
        held = plan.compressed.layer(layer.name)
        assert held.shape == layer.shape and int(held.pruned.sum()) == layer.params // 2
        assert not held.weight()[held.pruned].any()
        assert 4.0 - 2 / layer.shape[1] < held.widths.double().mean() <= 4.0
        assert plan.of(layer.name) == LayerPlan("per_channel", stored_bits=held.stored_bits.bitmap)


def test_a_blocks_layers_are_compressed_on_the_outputs_of_the_compressed_blocks_before(llama, tmp_path):
    plan = llama.plan(tmp_path / "compressed")
    first = replace(plan, layers={name: made for name, made in plan.layers.items() if ".layers.0." in name})
    write_checkpoint(tmp_path / "first", llama.checkpoint, llama.info, first, QuantizedWeights(limit=0))
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    name = "model.layers.1.self_attn.q_proj"
    gpt = SparseGPT(module.get_submodule(name), name)
    gpt.quantizer = HALF.quantizer()
    gpt.layer.register_forward_hook(lambda layer, args, output: gpt.add_batch(args[0], output))
    with torch.inference_mode():
        module(input_ids=llama.reference.tokens)
    made = gpt.fasterprune(0.5, target_avg_bits=4.0, bit_allocation_method="budget")
    held = plan.compressed.layer(name)
    assert torch.equal(made.widths, held.widths) and torch.equal(made.pruned, held.pruned)
    assert (made.codes != held.parts["codes"]).float().mean() < 1e-3


def test_a_plan_that_is_written_and_read_computes_the_same(family, tmp_path):
    _, made, plan = family
    write_config(tmp_path / "config.json", plan, LayerPlan(), made.info)
    write_plan(tmp_path / "plan.json", plan, LayerPlan(), made.info)
    states = plan_hidden(made.model, made.info, plan, made.reference.tokens, QuantizedWeights())
    for name in ("config.json", "plan.json"):
        again = read_plan(tmp_path / name, made.info)
        assert average_bits(again, made.info) == average_bits(plan, made.info)
        held = plan_hidden(made.model, made.info, again, made.reference.tokens, QuantizedWeights())
        assert torch.equal(held, states)
    assert json.loads((tmp_path / "plan.json").read_text())["compressed"] == {"sha256": plan.compressed.digest}


@pytest.mark.parametrize(("blocks", "parts"), [(b, p) for b in range(1, 12) for p in range(1, b + 1)])
def test_parts_of_the_blocks_are_as_the_documents_loop_has_them(blocks, parts):
    made = [part_of(block, blocks, parts) for block in range(blocks)]
    assert made == sorted(made) and set(made) == set(range(parts))
    counts = [made.count(part) for part in range(parts)]
    assert max(counts) - min(counts) <= 1
    if parts == 2:
        # for i, layer in enumerate(layers): 3.5 if i < len(layers) // 2 else 4.5
        assert made == [int(not block < blocks // 2) for block in range(blocks)]


def test_a_second_plan_with_outputs_in_the_same_folder_is_refused_before_any_work(llama, tmp_path, monkeypatch):
    model = prepare_model(llama.checkpoint.folder, "fp32", "cpu", 1)

    def run(name: str, settings=HALF):
        outputs = (tmp_path / f"{name}.config.json", tmp_path / f"{name}.json")
        with compressed_plan(model, llama.reference.tokens, settings, *outputs, None) as (_, plan):
            write_config(outputs[0], plan, LayerPlan(), llama.info)
            write_plan(outputs[1], plan, LayerPlan(), llama.info)

    run("first")
    held = (tmp_path / "compressed/index.json").read_bytes()
    run("first")
    with pytest.raises(UserError, match="SPARSEGPT-FOLDER-TAKEN.*first.config.json"):
        monkeypatch.setattr(model.model, "run", None)
        run("second", replace(HALF, targets=(3.0,)))
    assert (tmp_path / "compressed/index.json").read_bytes() == held and not (tmp_path / "second.json").exists()
    assert read_plan(tmp_path / "first.json", llama.info).compressed.digest


def test_a_run_that_was_stopped_goes_on_after_the_last_whole_block(llama, tmp_path, monkeypatch):
    whole = llama.compressed(tmp_path / "whole")
    seen = []
    one = SparseGPT.fasterprune

    def stops(self, *arguments, **named):
        seen.append(self.layer_name)
        if len(seen) == 10:
            raise KeyboardInterrupt
        return one(self, *arguments, **named)

    monkeypatch.setattr(SparseGPT, "fasterprune", stops)
    with pytest.raises(KeyboardInterrupt):
        llama.compressed(tmp_path / "again")
    assert not (tmp_path / "again").exists() and (tmp_path / "again.partial/block-00000.safetensors").exists()
    again = llama.compressed(tmp_path / "again")
    assert seen[10:] == [f"model.layers.1.{name}" for name in FAMILIES["llama"].layers]
    assert again.compressed.digest == whole.compressed.digest and again.rows == whole.rows
    assert again.stats.summary() == whole.stats.summary()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def test_what_another_settings_run_has_left_is_not_taken_up(llama, tmp_path, monkeypatch, caplog):
    fresh = llama.compressed(tmp_path / "fresh").compressed.digest
    one = SparseGPT.fasterprune

    def stops(self, *arguments, **named):
        if ".layers.1." in self.layer_name:
            raise KeyboardInterrupt
        return one(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SparseGPT, "fasterprune", stops)
        llama.compressed(tmp_path / "c", replace(HALF, targets=(3.0,)))
    assert llama.compressed(tmp_path / "c").compressed.digest == fresh and "starting over" in caplog.text


def test_halves_of_the_model_and_single_layers_have_targets_of_their_own(llama, tmp_path):
    settings = replace(HALF, targets=(3.0, 5.0), layer_bits=(("*.o_proj", 4.0), ("*.0.*.o_proj", 6.0)))
    plan = llama.plan(tmp_path / "c", settings)
    for layer in llama.info.quantizable:
        wanted = 3.0 if layer.block == 0 else 5.0
        if layer.name.endswith("o_proj"):
            wanted = 6.0 if layer.block == 0 else 4.0
        mean = plan.compressed.layer(layer.name).widths.double().mean().item()
        assert wanted - 2 / layer.shape[1] < mean <= wanted, layer.name


def test_patterns_without_a_layer_and_targets_out_of_reach_are_told_together(llama):
    settings = replace(
        HALF, targets=(1.5,), layer_bits=(("*.q_prj", 4.0),), channels=ChannelSettings(weights={"hesian": 1.0})
    )
    with pytest.raises(UserError) as told:
        settings.check(llama.info)
    assert len(told.value.problems) == 3 and "q_proj" in str(told.value) and "hessian" in str(told.value)


def test_pruning_alone_leaves_the_other_weights_in_full_precision(llama, tmp_path):
    plan = llama.plan(tmp_path / "c", replace(HALF, quantize=False, targets=()))
    held = plan.compressed.layer("model.layers.0.mlp.up_proj")
    assert not held.options and int((held.weight() == 0).sum()) == held.shape[0] * held.shape[1] // 2
    # A bitmap and 16 bits for each of the other half.
    assert average_bits(plan, llama.info).avg_bits_layers == pytest.approx(1 + 8, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------- sizes


def layer_of(widths: list[int], rows: int, group: int, pruned: torch.Tensor | None = None, zero: bool = False):
    options, columns = tuple(sorted({2, 3, 4, 6, 8})), len(widths)
    groups = -(-columns // group)
    parts = {
        "codes": torch.zeros(rows, columns, dtype=torch.int8),
        "widths": torch.tensor(widths, dtype=torch.uint8),
        "scale": torch.ones(len(options), groups, rows, dtype=torch.float16),
    }
    if pruned is not None:
        parts["pruned"] = pack_mask(pruned)
    if zero:
        parts["zero"] = torch.zeros(len(options), groups, rows, dtype=torch.uint8)
    return CompressedLayer(parts, options, group)


def test_widths_scales_and_the_list_of_widths_are_counted():
    # 10 rows: codes 10 x (2 + 2 + 8 + 4); a scale of 16 bits in each row for each of 3 widths; 3 bits say a channel's width.
    made = layer_of([2, 2, 8, 4], 10, 4).stored_bits
    assert made.dense == 160 + 3 * 10 * 16 + 4 * 3
    assert made.bitmap == made.dense + 40


def test_scales_are_counted_for_the_widths_that_a_group_uses_and_zero_points_with_them():
    # Groups of two channels: {2}, {8, 4}.
    made = layer_of([2, 2, 8, 4], 10, 2, zero=True).stored_bits
    assert made.dense == 160 + 3 * 10 * 16 + 10 * (2 + 8 + 4) + 4 * 3


def test_under_a_bitmap_pruned_codes_are_not_stored():
    pruned = torch.zeros(10, 4, dtype=torch.bool)
    pruned[:, 2] = True
    pruned[:5, 0] = True
    made = layer_of([2, 2, 8, 4], 10, 4, pruned).stored_bits
    assert made.bitmap == 40 + (160 - 10 * 8 - 5 * 2) + 3 * 10 * 16 + 4 * 3 and made.least == made.bitmap


def test_the_summary_says_both_sizes_and_the_plan_counts_the_smaller(llama, tmp_path):
    for sparsity, stored in ((0.0, "dense"), (0.5, "bitmap")):
        plan = llama.plan(tmp_path / str(sparsity), replace(HALF, pruning=Pruning(sparsity)))
        told, bits = plan.summary, average_bits(plan, llama.info)
        assert told["stored_as"] == stored and bits.avg_bits == pytest.approx(told[f"avg_bits_{stored}"])
        assert bits.avg_bits_layers == pytest.approx(min(told["avg_bits_layers_dense"], told["avg_bits_layers_bitmap"]))
    assert told["avg_bits_dense"] > told["avg_bits_bitmap"]


# ------------------------------------------------------------------------------------------------------------ better than


@pytest.fixture(scope="module")
def bundled(demo):
    made = Opened(demo / "model")
    made.reference = make_reference(made.model, demo / "calibration.txt", 256, 8, "fp32")
    made.held_out = make_reference(made.model, demo / "evaluation.txt", 256, 8, "fp32")
    return made


@pytest.mark.parametrize("bits", [3.0, 4.0])
def test_on_a_trained_model_it_damages_less_than_rounding_to_nearest_at_the_same_bits(bundled, bits, tmp_path):
    how = ModelSettings(targets=(bits,), method="uniform")
    found, rounded = (
        bundled.plan(tmp_path / str(compensate), replace(how, compensate=compensate)) for compensate in (True, False)
    )
    assert average_bits(found, bundled.info) == average_bits(rounded, bundled.info)
    assert damage(bundled, found) < 0.7 * damage(bundled, rounded)


def test_on_real_activations_every_layer_loses_less_than_by_rounding_to_nearest(bundled):
    from bitplan.statistics.hessian import collect_moments

    losses = []

    def visit(block, hidden, forward):
        with collect_moments(block) as moments:
            output = forward(hidden)
        for name, module in block.layers.items():
            weight, hessian, lost = module.weight.detach().clone(), moments[name].hessian, []
            for compensate in (True, False):
                layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
                layer.weight.data = weight.clone()
                gpt = SparseGPT(layer, name, moments=moments[name])
                gpt.quantizer = Quantizer(3)
                change = gpt.fasterprune(bit_allocation_method="uniform", compensate=compensate).values - weight
                lost.append(((change @ hessian) * change).sum().item())
            losses.append(lost)
        return output

    bundled.model.run(bundled.reference.tokens, visit)
    assert len(losses) == len(bundled.info.quantizable) and all(ours < theirs for ours, theirs in losses)


def test_magnitude_pruning_damages_more_than_sparsegpt(bundled, tmp_path):
    how = ModelSettings(Pruning(0.5), quantize=False)
    found, plain = (bundled.plan(tmp_path / str(c), replace(how, compensate=c)) for c in (True, False))
    assert damage(bundled, found) < damage(bundled, plain)


# ----------------------------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_holds_the_compressed_values_to_the_stated_error_and_says_what_that_costs(family, tmp_path):
    name, made, plan = family
    if not FAMILIES[name].gguf:
        pytest.skip("llama.cpp does not know this family")
    with base_file(None, made.checkpoint, tmp_path, made.info, plan) as base:
        report = export_plan(base, tmp_path / "o.gguf", made.info, plan)
    told = report["channels"]
    assert told["file_bytes"] > told["plan_bytes"] and told["max_error"] == 1e-3
    chosen = {record["layer"]: record for record in report["tensors"] if record["asked"] == "per_channel"}
    assert all("no type has a width per channel" in record["why"] for record in chosen.values())
    scores = score_gguf(tmp_path / "o.gguf", made.reference, 1)
    wanted = plan_nll(made.model, made.info, plan, made.reference, QuantizedWeights()).double().mean().item()
    assert scores.nll.double().mean().item() == pytest.approx(wanted, abs=0.01)


def test_a_smaller_error_asks_for_larger_types(llama, tmp_path):
    plan, sizes = llama.plan(tmp_path / "c"), []
    with base_file(None, llama.checkpoint, tmp_path, llama.info, plan) as base:
        for error in (1e-2, 1e-4, 1e-9):
            report = export_plan(base, tmp_path / "o.gguf", llama.info, plan, GGUFOptions(max_error=error))
            sizes.append(report["channels"]["file_bytes"])
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    held = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "o.gguf").tensors if "blk" in tensor.name}
    assert held == {"F32", "F16"}


def test_a_base_file_of_the_original_is_not_taken_for_the_compressed_one(llama, tmp_path):
    convert(llama.checkpoint, tmp_path / "base.gguf")
    with base_file(tmp_path / "base.gguf", llama.checkpoint, tmp_path) as given:
        assert given == tmp_path / "base.gguf"
    with base_file(tmp_path / "base.gguf", llama.checkpoint, tmp_path, llama.info, llama.plan(tmp_path / "c")) as given:
        assert given != tmp_path / "base.gguf"


# ------------------------------------------------------------------------------------------------------------ bad plans


# ------------------------------------------------------------------------------------------------------------- the command


def test_a_uniform_plan_of_no_compressed_layer_needs_no_folder(llama, tmp_path):
    write_plan(tmp_path / "plan.json", uniform_plan(llama.info, "int4"), LayerPlan(), llama.info)
    assert read_plan(tmp_path / "plan.json", llama.info).compressed is None
