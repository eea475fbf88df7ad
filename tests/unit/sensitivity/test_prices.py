"""Prices: the KL of a candidate to second order, from labels drawn from the model and one backward walk."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bitplan.core.errors import UserError
from bitplan.core.files import read_table
from bitplan.models.layers import Layer
from bitplan.models.walk import Block
from bitplan.reference.head import Head
from bitplan.reference.opening import prepare_model
from bitplan.reference.text import windows
from bitplan.sensitivity.agreement import kendall
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.label_draws import drawn_gradients
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings
from bitplan.sensitivity.measure import measure_table, merged
from bitplan.sensitivity.price_estimate import near, window_prices
from bitplan.sensitivity.price_products import LayerCandidates, window_products
from bitplan.sensitivity.priced import with_price
from bitplan.sensitivity.prices import Pricing
from bitplan.sensitivity.run import write_sensitivity
from bitplan.sensitivity.through_attention import attention_of, changed_attention
from tests.families import FAMILIES, TEXT
from tests.measured_models import ALL, LENGTH, PRICED, SEQUENCES, Model, replace_tokens

GENTLE = SensitivitySettings((Choice("int8", group_size=32), Choice("int8", "int8_token", 32)), (0.5,), tokens=64)


# ------------------------------------------------------------------------------- a model of one matrix and a softmax

TOKENS, COLUMNS, OUT, WORDS, DRAWS = 12, 6, 6, 20, 10_000


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """A block of one matrix."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden)


def one_matrix(changes: list[torch.Tensor], head: Head, draws: int) -> torch.Tensor:
    """Return <G, D> (changes, draws) of changes of the one matrix below the head."""
    weight, inputs = numbers(0, OUT, COLUMNS), numbers(1, 1, TOKENS, COLUMNS)
    module = Linear(weight)
    block = Block(0, "block", module, {"layer": module.layer})
    final = module(inputs)[0]
    gradients, _ = drawn_gradients(head, final, draws, torch.Generator().manual_seed(3))
    layer = Layer("layer", "q", (OUT, COLUMNS), 0, "", False)
    candidates = LayerCandidates(layer, weight, [Choice("int3")] * len(changes), [weight + each for each in changes])
    return window_products(block, module, inputs, gradients.unsqueeze(1), [candidates])[1]["layer"][0]


def second_order(change: torch.Tensor, head: Head) -> float:
    """Return 1/2 sum_t a_t' (diag p_t - p_t p_t') a_t in float64, a_t what the change does to the logits of position t."""
    weight, inputs = numbers(0, OUT, COLUMNS).double(), numbers(1, TOKENS, COLUMNS).double()
    matrix, cap = head.matrix.double(), head.softcap

    def logits(used: torch.Tensor) -> torch.Tensor:
        made = inputs[:-1] @ used.T @ matrix.T * head.scale
        return made if cap is None else torch.tanh(made / cap) * cap

    p = logits(weight).softmax(-1)
    a = torch.func.jvp(logits, (weight,), (change.double(),))[1]
    return 0.5 * ((p * a.square()).sum(-1) - (p * a).sum(-1).square()).sum().item()


@pytest.mark.parametrize(
    "head",
    [Head(numbers(2, WORDS, OUT)), Head(numbers(2, WORDS, OUT), scale=0.5), Head(numbers(2, WORDS, OUT), softcap=2.0)],
)
def test_a_price_is_the_second_order_kl_within_its_standard_error(head):
    change = 0.1 * numbers(4, OUT, COLUMNS)
    products = one_matrix([change], head, DRAWS)[0]
    found, error = products.square() / 2, products.square().std().item() / 2 / math.sqrt(DRAWS)
    assert abs(found.mean().item() - second_order(change, head)) < 3 * error
    assert error < 0.02 * found.mean().item()


def test_a_price_is_quadratic_in_the_change():
    change, head = 0.1 * numbers(4, OUT, COLUMNS), Head(numbers(2, WORDS, OUT))
    once, twice, back = one_matrix([change, 2 * change, -change], head, 50)
    assert torch.allclose(twice.square(), 4 * once.square(), rtol=1e-4)
    assert torch.allclose(back.square(), once.square(), rtol=1e-4)


def test_what_another_output_matrix_does_is_priced_with_the_same_labels():
    """A change of the output matrix: its second-order KL, by the sums that come with the gradients."""
    head, change, final = Head(numbers(2, WORDS, OUT)), 0.05 * numbers(5, WORDS, OUT), numbers(6, TOKENS, OUT)
    _, sums = drawn_gradients(head, final, DRAWS, torch.Generator().manual_seed(0), [Head(head.matrix + change)])
    p, a = (final[:-1].double() @ head.matrix.double().T).softmax(-1), final[:-1].double() @ change.double().T
    wanted = 0.5 * ((p * a.square()).sum(-1) - (p * a).sum(-1).square()).sum().item()
    squares = sums[0].square() / 2
    assert abs(squares.mean().item() - wanted) < 3 * squares.std().item() / math.sqrt(DRAWS)


def test_inputs_that_are_quantized_too_count_with_the_weights_that_read_them():
    weight, inputs = numbers(0, OUT, 32), numbers(1, TOKENS, 32)
    choice, scale = Choice("int4", "int8_token", 32), numbers(2, 32).abs() + 0.5
    made = choice.weights(weight, scale)
    layer = LayerCandidates(
        Layer("layer", "q", (OUT, 32), 0, "", False), weight, [choice, Choice("bf16")], [made, weight], scale
    )
    changed, same = layer.changed_outputs(inputs)
    assert torch.allclose(changed, choice.activations(inputs, scale) @ made.T - inputs @ weight.T, atol=1e-6)
    assert same is None


# ------------------------------------------------------------------------------------------------------- the estimate


def series(coherent: float, draws: int, seed: int = 0, length: int = 512) -> torch.Tensor:
    """Products of tokens (draws, windows, length): independent of each other, but for what all tokens of a draw share."""
    return numbers(seed, draws, 16, length).double() + coherent * numbers(seed + 1, draws, 16, 1).double()


def estimates(products: torch.Tensor) -> tuple[float, float]:
    """Return the whole and the corrected estimate of E[(sum)^2] / 2 per token, of products (draws, windows, length)."""
    squares = products.sum(-1).square().unsqueeze(0)
    close = torch.stack([torch.stack([near(window) for window in draw]) for draw in products]).unsqueeze(0)
    scored = products.shape[-1]
    return squares.mean().item() / 2 / scored, window_prices(squares, close, ["one"], scored).mean().item()


def test_without_far_interactions_the_noise_of_a_price_is_less_than_half():
    found = torch.tensor([estimates(series(0.0, 8, seed)) for seed in range(0, 60, 2)])
    assert found.mean(0)[1].item() == pytest.approx(0.5, rel=0.04)
    assert found[:, 1].std() < found[:, 0].std() / 2


def test_far_interactions_that_the_noise_does_not_explain_are_kept():
    """Tokens that share most of their product, as those of keys: near ones alone would see a sixth of it."""
    whole, found = estimates(series(1.0, 8))
    assert found == pytest.approx(whole, rel=0.05) and whole > 100


def test_near_tokens_are_those_of_a_span_and_the_next(tokens=70):
    products = numbers(0, tokens).double()
    places = torch.arange(tokens) // 32
    close = (places[:, None] - places[None]).abs() <= 1
    assert near(products).item() == pytest.approx((torch.outer(products, products) * close).sum().item())


def test_a_choice_that_changes_nothing_is_free_and_does_not_count_for_the_others():
    squares, close = numbers(0, 1, 4, 3).double().square(), numbers(1, 1, 4, 3).double().square()
    alone = window_prices(squares, close, ["x"], 10)
    nothing = torch.zeros_like(squares)
    both = window_prices(torch.cat([nothing, squares]), torch.cat([nothing, close]), ["x", "x"], 10)
    assert torch.equal(both[1:], alone) and not both[0].any()


# ----------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", FAMILIES)
def test_prices_are_the_measured_kl_of_small_changes_in_every_family(name, family, tmp_path):
    """Each candidate roughly, and all together within a sixth; the embedding and the output matrix too.

    Of a mixture the experts behind the last router, which no change of theirs makes choose otherwise, and the output matrix.
    """
    model, mixture = family(name), any("experts" in layer for layer in FAMILIES[name].layers)
    rows = model.measured(tmp_path / "s.tsv", replace(ALL, draws=64, embeddings=("int8",)), GENTLE).rows
    assert {row["kld_from"] for row in rows} == {"measured"}
    known = [row for row in rows if row["price_se"] and (not mixture or behind_the_routers(row))]
    assert {row["inputs"] for row in known} == {"bf16", "int8_token"}
    assert mixture or {row["layer"] for row in known} == {row["layer"] for row in rows}
    for row in known:
        assert row["price"] == pytest.approx(row["kld"], rel=0.6, abs=1e-9), row["layer"]
    assert sum(row["price"] for row in known) == pytest.approx(sum(row["kld"] for row in known), rel=0.17)


def behind_the_routers(row) -> bool:
    return row["category"] == "lm_head" or ("layers.1." in row["layer"] and "experts" in row["layer"])


def test_experts_that_no_token_reached_have_no_price_and_say_so(family, tmp_path):
    model = family("mixtral")
    rows = replace_tokens(model, model.tokens[:1, :2]).measured(tmp_path / "s.tsv", PRICED).rows
    unreached = [row for row in rows if row["kld_from"] == "unreached"]
    assert unreached and unreached == [row for row in rows if row["tokens"] == 0]
    assert {row[name] for row in unreached for name in ("price", "price_se", "kld", "kld_se")} == {None}
    assert {row["kld_from"] for row in rows} == {"unreached", "priced"}
    assert all("experts" in row["layer"] for row in unreached)


# -------------------------------------------------------------------------------------------------- resuming and shards


def written(model: Model, path: Path, measure: MeasureSettings) -> bytes:
    made = model.measured(path, measure)
    write_sensitivity(path, made.rows, made.smoothing)
    return path.read_bytes()


@pytest.mark.parametrize("measure", [PRICED, replace(PRICED, anchors="1", embeddings=("q8_0",))])
def test_the_tables_of_shards_merge_to_that_of_one_run(llama, tmp_path, measure):
    whole = written(llama, tmp_path / "whole.tsv", measure)
    shards = [tmp_path / f"{number}.tsv" for number in (1, 2, 3)]
    for number, path in enumerate(shards, start=1):
        written(llama, path, replace(measure, shard=(number, 3)))
    write_sensitivity(tmp_path / "merged.tsv", *merged(shards, llama.opened.info))
    assert (tmp_path / "merged.tsv").read_bytes() == whole


def test_a_backward_walk_that_was_stopped_goes_on_at_its_block(family, tmp_path, monkeypatch):
    model = family("llama")
    whole = written(model, tmp_path / "whole.tsv", PRICED)
    plain, done = Pricing._block, []

    def stopped(self, index, above):
        if done:
            raise KeyboardInterrupt
        done.append(index)
        return plain(self, index, above)

    monkeypatch.setattr("bitplan.core.resume.SHARE", 1e9)
    monkeypatch.setattr(Pricing, "_block", stopped)
    with pytest.raises(KeyboardInterrupt):
        written(model, tmp_path / "again.tsv", PRICED)
    monkeypatch.setattr(Pricing, "_block", lambda self, index, above: done.append(index) or plain(self, index, above))
    assert written(model, tmp_path / "again.tsv", PRICED) == whole
    assert done == [1, 0]


def test_how_much_memory_there_is_changes_no_price(llama, tmp_path):
    gradients = 4 * 64 * llama.tokens.numel() * PRICED.draws
    little = written(llama, tmp_path / "little.tsv", replace(PRICED, memory_limit=gradients + 10**6))
    assert little == written(llama, tmp_path / "much.tsv", PRICED)
    with pytest.raises(UserError, match="SENSITIVITY-MEMORY"):
        written(llama, tmp_path / "none.tsv", replace(PRICED, memory_limit=1))


# -------------------------------------------------------------------------------------------------- the bundled model


@pytest.fixture(scope="module")
def bundled(demo, tmp_path_factory):
    """Rows of the bundled model's layers, measured and priced on a few windows."""
    model = prepare_model(demo / "model", "fp32", "cpu", 1)
    settings = SensitivitySettings((Choice("q3_k"), Choice("q4_k"), Choice("q6_k")))
    tokens = windows(demo / "model", TEXT, 128, 8)
    return measure_table(model, tokens, settings, replace(ALL, draws=16), tmp_path_factory.mktemp("b") / "s.tsv").rows


@pytest.mark.parametrize("form", ["q3_k", "q4_k", "q6_k"])
def test_prices_order_the_layers_of_the_bundled_model_as_measured_kl_does(bundled, form):
    rows = [row for row in bundled if row["format"] == form]
    assert kendall(rows, lambda row: row["price"]) > 0.8
    assert sum(row["price"] for row in rows) == pytest.approx(sum(row["kld"] for row in rows), rel=0.1)


# ------------------------------------------------------------------------------------------------- what a row's KL is


def row_of(layer: str, kld: float | None, prices: list[float] | None) -> dict:
    source = "" if kld is None else "measured"
    made = {"layer": layer, "inputs": "bf16", "kld": kld, "kld_se": None, "kld_from": source}
    return with_price({**made, "price_by_window": prices})


def test_a_price_stands_for_kl_where_none_is_measured_and_only_there():
    rows = [row_of("a", 2.0, [1.0, 3.0]), row_of("a", None, [0.4, 0.6]), row_of("b", None, [])]
    assert [row["kld_from"] for row in rows] == ["measured", "priced", "unreached"]
    assert [row["kld"] for row in rows[:2]] == pytest.approx([2.0, 0.5]) and rows[2]["kld"] is None
    assert rows[0]["price"] == 2.0 and rows[1]["kld_se"] == rows[1]["price_se"] == pytest.approx(0.1)
    assert row_of("a", None, None)["kld"] is None


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_prices_every_row_and_the_embeddings(llama, tmp_path, command):
    words = ("--calibration", TEXT, "--length", LENGTH, "--sequences", SEQUENCES, "--threads", 1, "--no-smoothing")
    asked = ("--palette", "int4", "q8_0", "--metric", "gradient", "--draws", 2, "--embeddings", "q8_0")
    command("sensitivity.py", "--model", llama.folder, *words, *asked, "--output", tmp_path / "s.tsv")
    rows = read_table(tmp_path / "s.tsv")
    assert {row["kld_from"] for row in rows} == {"priced"}
    assert all(
        float(row["price"]) > 0 and row["kld"] == row["price"] and row["kld_se"] == row["price_se"] for row in rows
    )
    assert [row["layer"] for row in rows[-2:]] == ["model.embed_tokens", "lm_head"]


def test_gaussian_inputs_have_no_prices(llama, tmp_path, command):
    words = ("--random", "--metric", "gradient", "--output", tmp_path / "s.tsv")
    found = command("sensitivity.py", "--model", llama.folder, *words, ok=False)
    assert found.returncode == 2 and "SENSITIVITY-NEEDS-TEXT" in found.stderr


# --------------------------------------------------------------------------------------------- through the softmax


def noted(outputs: dict[str, torch.Tensor], name: str, module: nn.Module, args: tuple, made: torch.Tensor) -> None:
    outputs.setdefault(name, made.clone())


@pytest.mark.parametrize(
    ("name", "layer"), [("llama", "q_proj"), ("qwen3", "k_proj"), ("gpt2", "c_attn"), ("bloom", "query_key_value")]
)
def test_what_queries_and_keys_change_is_the_attention_as_it_runs_with_them(name, layer, family):
    model, found = family(name), []

    def visit(block: Block, hidden: torch.Tensor, forward) -> torch.Tensor:
        part = hidden[:1]
        through, before = attention_of(block)
        own = next(each for each in through if each.endswith(layer))
        out, reads, outputs = block.layers[through[own]], [], {}
        hooks = [out.register_forward_pre_hook(lambda module, args: reads.append(args[0].clone()))]
        hooks += [block.layers[each].register_forward_hook(partial(noted, outputs, each)) for each in before]
        forward(part)
        change = numbers(0, *outputs[own].shape)
        hooks.append(block.layers[own].register_forward_hook(lambda module, args, made: made + change))
        forward(part)
        for hook in hooks:
            hook.remove()
        made = changed_attention(block, forward, part, outputs, own, [change.flatten(0, -2), None])
        found.append((made, (reads[1] - reads[0]).flatten(0, -2)))
        return forward(hidden)

    model.opened.model.run(model.tokens, visit, range(1), differentiable=True)
    (made, nothing), wanted = found[0]
    assert torch.allclose(made, wanted, atol=1e-5) and wanted.abs().max() > 1e-3 and nothing is None
