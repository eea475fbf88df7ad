"""Measured sensitivity: the KL of one layer alone, the passes in which it is measured, the Fisher score, resuming and shards."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.core.files import read_table
from bitplan.core.resume import PartialResults, gradient_name, states_name
from bitplan.evaluate.scores import divergence
from bitplan.models.walk import open_model
from bitplan.reference.head import Head, StoredHead
from bitplan.reference.opening import prepare_model
from bitplan.reference.text import windows
from bitplan.search.genetic.rows import read_sensitivity
from bitplan.search.genetic.run import palette_table
from bitplan.sensitivity.candidates import MeasureSettings, Piece, anchor_choices, most_carried, passes, share_of
from bitplan.sensitivity.gradients import final_gradient, keep_gradients
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, activation_choices, measure_sensitivity
from bitplan.sensitivity.measure import measure_table
from bitplan.sensitivity.passes import Measurement, planned
from bitplan.sensitivity.run import write_sensitivity
from bitplan.sensitivity.table import read_sensitivity_table
from tests.families import FAMILIES, TEXT
from tests.measured_models import ALL, CHOICES, LENGTH, SEQUENCES, SETTINGS, replace_tokens

# ------------------------------------------------------------------------------------------------- KL of a layer alone


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kl_of_a_layer_alone_is_that_of_a_full_forward(name, family, tmp_path):
    model, few = family(name), (CHOICES[0], CHOICES[2])
    made = model.measured(tmp_path / "s.tsv", ALL, replace(SETTINGS, choices=few))
    picked = random.Random(0).sample(made.rows, 10)
    for row in picked:
        assert row["kld"] == pytest.approx(model.alone(row, made.smoothing), rel=1e-5, abs=1e-12), row
    assert {row["kld_from"] for row in made.rows} == {"measured"}


def test_the_error_of_a_kl_is_that_of_the_mean_over_windows(llama, tmp_path):
    row = llama.measured(tmp_path / "s.tsv").rows[2]
    by_window = row["by_window"]
    mean = sum(by_window) / SEQUENCES
    variance = sum((value - mean) ** 2 for value in by_window) / (SEQUENCES - 1)
    assert row["kld"] == pytest.approx(mean) and row["kld_se"] == pytest.approx(math.sqrt(variance / SEQUENCES))


def test_measuring_leaves_the_rest_of_the_table_as_it_is_without(llama, tmp_path):
    plain, smoothing = measure_sensitivity(llama.opened.model, llama.opened.info, llama.tokens, SETTINGS)
    made = llama.measured(tmp_path / "s.tsv")
    same = [key for key in plain[0] if key not in ("kld", "fisher")]
    assert [{key: row[key] for key in same} for row in made.rows] == [
        {key: pytest.approx(row[key], rel=1e-8) if isinstance(row[key], float) else row[key] for key in same}
        for row in plain
    ]
    assert made.smoothing.digest == smoothing.digest


def test_experts_that_no_token_reached_have_no_kl_and_no_fit(family, tmp_path):
    model = family("mixtral")
    few = replace_tokens(model, model.tokens[:1, :2])
    settings = replace(SETTINGS, choices=(*SETTINGS.choices, Choice("int4")))
    rows = few.measured(tmp_path / "s.tsv", MeasureSettings("2"), settings).rows
    unreached = [row for row in rows if math.isnan(float("nan" if row["mse"] is None else row["mse"]))]
    assert unreached and {row["kld"] for row in unreached} == {0.0, None}
    assert all(row["tokens"] == 0 for row in unreached) and sum(row["tokens"] == 0 for row in rows) == len(unreached)


def test_both_searches_take_a_table_in_which_no_token_reached_some_experts_alike(family, tmp_path):
    model, table = family("mixtral"), tmp_path / "s.tsv"
    few = replace_tokens(model, model.tokens[:1, :2])
    formats = (Choice("int4"), Choice("mxfp8"), Choice("mxfp6_e2m3"))
    settings = replace(SETTINGS, choices=(*activation_choices("tensor"), *formats))
    made = few.measured(table, MeasureSettings("2"), settings)
    write_sensitivity(table, made.rows, made.smoothing)
    info, palette = model.opened.info, ("int4", "mxfp8", "mxfp6_e2m3")
    read = read_sensitivity_table(table)
    other = palette_table(read_sensitivity(table), info.quantizable, palette, "kld")
    places = [read.formats.index(form) for form in palette]
    assert read.layers == tuple(layer.name for layer in info.quantizable)
    assert (read.kld[:, places] == other.damage).all()
    lacking = table.read_text().replace("tokens", "other")
    table.write_text(lacking)
    for reader in (
        read_sensitivity_table,
        lambda path: palette_table(read_sensitivity(path), info.quantizable, palette, "kld"),
    ):
        with pytest.raises(UserError, match="SENSITIVITY-BAD-CELL"):
            reader(table)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0, 1e6])
def test_divergence_is_that_of_float64_however_close_or_far_the_two_are(scale):
    generator = torch.Generator().manual_seed(1)
    logits, change = torch.randn(8, 300, generator=generator) * 4, torch.randn(8, 300, generator=generator) * scale
    known = logits.log_softmax(-1)
    p, q = logits.double().log_softmax(-1), (logits.double() + change.double()).log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1)
    found = divergence(known, known.exp(), change)
    assert torch.allclose(found.double(), wanted, rtol=2e-3 if scale < 1e-3 else 2e-5) and (found >= 0).all()
    assert divergence(known, known.exp(), torch.full_like(change, math.nan)).isnan().all()


# ------------------------------------------------------------------------------------------------------- the one walk


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bloom", "falcon", "gemma3_text", "mixtral"])
def test_a_walk_goes_on_from_the_states_of_a_block(name, family):
    model = family(name)
    seen = {}

    def note(block, hidden, forward):
        seen[block.index] = forward(hidden)
        return seen[block.index]

    whole = model.opened.model.run(model.tokens, note)
    again = model.fresh().model
    visited = []
    ended = again.run(
        model.tokens,
        lambda block, hidden, forward: visited.append(block.index) or forward(hidden),
        range(1, 2),
        seen[0],
    )
    assert visited == [1] and torch.equal(ended, whole)
    assert torch.equal(model.fresh().model.run(model.tokens, blocks=range(0), hidden=seen[1]), whole)


# ------------------------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize("measured", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_every_layer_and_choice_is_in_one_pass_that_carries_no_more_than_it_may(llama, measured, most):
    layers = llama.opened.info.quantizable
    made = passes([Piece(layer, (0, 1, 2), measured) for layer in layers], most, 2)
    rows = [(piece.layer.name, i) for each in made for piece in each.pieces for i in piece.rows]
    assert sorted(rows) == sorted((layer.name, i) for layer in layers for i in range(3)) and len(rows) == len(set(rows))
    carried = {(piece.layer.name, i) for each in made for piece in each.pieces for i in piece.carried}
    assert carried == {(layer.name, i) for layer in layers for i in measured}
    assert all(each.carried <= most for each in made)
    for each in made:
        assert {piece.layer.block for piece in each.pieces} <= set(each.blocks)
        assert all(set(piece.carried) <= set(piece.rows) for piece in each.pieces)
    assert set(itertools.chain(*(each.blocks for each in made))) == {0, 1}
    starts = [each.blocks.start for each in made]
    assert starts == sorted(starts)


def test_shares_of_the_layers_are_all_of_them_each_once(llama):
    layers = llama.opened.info.quantizable
    shares = [share_of(layers, (number, 4)) for number in (1, 2, 3, 4)]
    assert sorted(map(len, shares)) == [3, 3, 4, 4]
    assert {layer.name for share in shares for layer in share} == {layer.name for layer in layers}
    with pytest.raises(UserError, match="SENSITIVITY-TOO-MANY-SHARDS"):
        share_of(layers, (1, 15))


def test_anchors_are_the_middle_or_the_ends_of_the_palette_by_bits():
    choices = (*activation_choices("tensor"), *map(Choice, ("q8_0", "q4_k", "bf16", "q2_k", "q6_k", "q5_k", "q3_k")))
    named = {anchors: [choices[i].wq for i in anchor_choices(choices, anchors)] for anchors in ("1", "2")}
    assert named == {"1": ["q4_k"], "2": ["q8_0", "q2_k"]}
    assert anchor_choices(choices, None) == () and len(anchor_choices(choices, "all")) == 8
    with pytest.raises(UserError, match="SENSITIVITY-NO-PALETTE"):
        anchor_choices(choices[:2], "2")


def test_a_memory_limit_below_one_candidate_is_refused_with_the_least_that_works():
    with pytest.raises(UserError, match="SENSITIVITY-MEMORY"):
        most_carried(4 * 10**6, 10**6, 100)
    assert most_carried(5 * 10**6, 10**6, 100) == 1
    # No more than an eighth of the candidates, so that a kill loses no more.
    assert most_carried(10**12, 10**6, 100) == 13


def test_how_much_memory_there_is_changes_no_figure(llama, tmp_path):
    state = llama.tokens.numel() * 64 * 4
    tables = [
        llama.measured(tmp_path / "s.tsv", replace(ALL, memory_limit=limit * state)).rows for limit in (5, 7, 10**6)
    ]
    assert tables[0] == tables[1] == tables[2]


def test_a_walk_holds_no_more_candidates_than_the_memory_limit_says(llama, tmp_path, monkeypatch):
    from bitplan.sensitivity import passes as module

    state, most = llama.tokens.numel() * 64 * 4, []
    kept = module.kld_by_window
    monkeypatch.setattr(module, "kld_by_window", lambda *given: most.append(len(given[1])) or kept(*given))
    llama.measured(tmp_path / "s.tsv", replace(ALL, memory_limit=7 * state))
    assert max(most) == 3 and sum(most) == 14 * len(CHOICES)


def test_the_bundled_model_takes_at_most_six_tenths_of_the_block_forwards_of_one_by_one(demo, tmp_path):
    model = prepare_model(demo / "model", "fp32", "cpu", 1)
    tokens = windows(demo / "model", TEXT, 16, 2)
    palette = tuple(map(Choice, ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")))
    settings = SensitivitySettings((*activation_choices("tensor"), *palette), (0.5,))
    made = measure_table(model, tokens, settings, ALL, tmp_path / "s.tsv")
    assert len(made.rows) == 28 * 8
    assert made.block_forwards <= 0.6 * (28 * 8 + 1) * 4


# ------------------------------------------------------------------------------------------------------------- Fisher


def whole_gradients(folder: Path, tokens: torch.Tensor, names: list[str]):
    """The gradient of the NLL of drawn labels at the states after each block and at layers' outputs, of the whole model at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {name: [] for name in names}
    outputs: dict[str, torch.Tensor] = {}

    def noting(name: str):
        def note(module, args, output):
            outputs[name] = output[0] if isinstance(output, tuple) else output
            outputs[name].retain_grad()

        return note

    for name in names:
        model.get_submodule(name).register_forward_hook(noting(name))
    for window, row in enumerate(tokens):
        logits = model(row.unsqueeze(0)).logits[0, :-1]
        generator = torch.Generator().manual_seed(window)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        for name in names:
            found[name].append(outputs[name].grad[0])
    return {name: torch.stack(parts) for name, parts in found.items()}


def test_the_gradient_between_blocks_is_that_of_the_whole_model(llama, tmp_path):
    kept = PartialResults.open(tmp_path / "s.tsv", "x")
    states = []

    def note(block, hidden, forward):
        states.append(forward(hidden).clone())
        return states[-1]

    llama.opened.model.run(llama.tokens, note)
    for block, values in enumerate(states, start=1):
        kept.save_tensor(states_name(block), values)
    keep_gradients(llama.opened.model, llama.tokens, StoredHead.of(llama.opened.checkpoint), kept)
    names = ["model.layers.0", "model.layers.1"]
    wanted = whole_gradients(llama.folder, llama.tokens, names)
    for block, name in enumerate(names, start=1):
        found = kept.tensor(gradient_name(block))
        assert torch.allclose(found, wanted[name], rtol=1e-3, atol=1e-4 * wanted[name].abs().max())


def test_the_gradient_of_drawn_labels_is_p_minus_the_label_through_the_output_matrix():
    head = Head(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    final = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    found = final_gradient(head, final, torch.Generator().manual_seed(2))
    p = (final[:-1] @ head.matrix.T).softmax(-1)
    labels = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(2)).squeeze(-1)
    wanted = (p - torch.nn.functional.one_hot(labels, 50)) @ head.matrix
    assert torch.allclose(found[:-1], wanted, atol=1e-5) and not found[-1].any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_fisher_score_is_half_the_mean_square_of_the_gradient_along_the_change(name, family, tmp_path):
    model = family(name)
    settings = replace(SETTINGS, tokens=10**6)
    made = model.measured(tmp_path / "s.tsv", MeasureSettings(fisher=True), settings)
    layers = [layer for layer in model.opened.info.quantizable if layer.block == 0]
    whole = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    inputs: dict[str, torch.Tensor] = {}
    for layer in layers:
        part = whole.get_submodule(layer.name)
        part.register_forward_pre_hook(lambda module, args, name=layer.name: inputs.update({name: args[0].detach()}))
    with torch.no_grad():
        whole(model.tokens)
    gradients = whole_gradients(model.folder, model.tokens, [layer.name for layer in layers])
    rows = {(row["layer"], row["format"], row["inputs"]): row for row in made.rows}
    for layer in layers:
        stored = whole.get_submodule(layer.name).weight.detach()
        weight = stored.T if layer.transposed else stored
        change = inputs[layer.name] @ (Choice("int3", group_size=32).weights(weight, None) - weight).T
        products = (gradients[layer.name] * change).sum(-1).double()
        wanted = 0.5 * products.square().sum().item() / model.tokens[:, 1:].numel()
        assert rows[layer.name, "int3", "bf16"]["fisher"] == pytest.approx(wanted, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "part"), [("llama", ""), ("opt", ""), ("mixtral", "layers.1.block_sparse_moe.experts")]
)
def test_the_fisher_score_estimates_kl(name, part, family, tmp_path):
    """One label a token, and tokens one by one: for each layer roughly, on the whole within a third.

    Of a mixture the experts behind the last router: what makes another router choose otherwise has no gradient there.
    """
    model = family(name)
    rows = model.measured(tmp_path / "s.tsv", replace(ALL, fisher=True), replace(SETTINGS, tokens=10**6)).rows
    gentle = [row for row in rows if row["format"] == "q8_0" and row["fisher"] and part in row["layer"]]
    ratio = sum(row["fisher"] for row in gentle) / sum(row["kld"] for row in gentle)
    assert 0.67 < ratio < 1.5


# ---------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_measured_and_fitted_rows_and_says_what_agrees(llama, tmp_path, command):
    import json

    windows_of = ("--calibration", TEXT, "--length", LENGTH, "--sequences", SEQUENCES, "--threads", 1)
    palette = ("--palette", "int2", "int4", "q8_0")
    outputs = ("--output", tmp_path / "s.tsv", "--report", tmp_path / "tau.json")
    made = command("sensitivity.py", "--model", llama.folder, *windows_of, *palette, "--anchors", 2, *outputs)
    rows = read_table(tmp_path / "s.tsv")
    from_ = {(row["format"], row["inputs"]): row["kld_from"] for row in rows}
    assert from_ == {
        **{("int4", "int4_tensor"): "fitted", ("int4", "int8_tensor"): "fitted", ("int4", "bf16"): "fitted"},
        **{("int2", "bf16"): "measured", ("q8_0", "bf16"): "measured"},
    }
    assert all(float(row["kld"]) > 0 and bool(row["kld_se"]) == (row["kld_from"] == "measured") for row in rows)
    assert all(float(row["alpha"]) > 1 for row in rows) and {row["fisher"] for row in rows} == {""}
    taus = json.loads((tmp_path / "tau.json").read_text())["kendall_tau"]
    assert set(taus) == {"alpha", "mse", "relative_mse", "weighted_error", "fisher", "price"}
    assert set(taus["mse"]) == {"int2", "q8_0", "all"} and taus["fisher"]["all"] is None
    assert "tau against KL" in made.stdout and not (tmp_path / "s.tsv.partial").exists()
    meta = json.loads((tmp_path / "s.tsv.meta.json").read_text())
    assert meta["block_forward_tokens"] == round(meta["block_forwards"] * LENGTH * SEQUENCES)


def test_planning_says_how_many_candidates_there_are(llama, caplog):
    with caplog.at_level("INFO"):
        made = planned(llama.opened.model, llama.opened.info, llama.tokens, SETTINGS, ALL)
    assert len(made) == 8 and "14 layers, 56 candidates in 8 passes" in caplog.text


def test_a_measurement_can_be_opened_again(llama, tmp_path):
    """All of it kept, a second run does no block again."""
    kept = PartialResults.open(tmp_path / "s.tsv", "x")
    plan = planned(llama.opened.model, llama.opened.info, llama.tokens, SETTINGS, ALL)
    parts = (llama.opened.info, llama.tokens, SETTINGS, ALL, kept)
    first = Measurement(llama.opened.model, *parts).run(plan)
    fresh = open_model(llama.opened.checkpoint)
    again = Measurement(fresh, *parts).run(plan)
    assert (again.rows, again.block_forwards) == (first.rows, first.block_forwards) and fresh.tokens_forwarded == 0
