"""The sensitivity of layers: what the figures mean, on which inputs they are measured, and what a table holds."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.reference.text import windows
from bitplan.sensitivity.local_errors import (
    Choice,
    SensitivitySettings,
    activation_choices,
    classes,
    measure_sensitivity,
    output_errors,
    sensitivity_ratio,
    weighted_error,
)
from bitplan.statistics.inputs import observe_inputs
from tests.families import TEXT, make_family

FIGURES = ("mse", "relative_mse", "weighted_error")
WHOLE = Choice("bf16")


class Opened:
    def __init__(self, folder, sequences: int = 4) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.info = describe(self.checkpoint)
        self.model = open_model(self.checkpoint)
        self.tokens = windows(folder, TEXT, 32, sequences)

    def measured(self, *choices: Choice, alphas=(0.5,), tokens=128, random=False, text=None):
        settings = SensitivitySettings(choices or activation_choices("tensor"), alphas, tokens=tokens)
        given = self.tokens if text is None else text
        return measure_sensitivity(self.model, self.info, given, settings, random)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A mixture of experts, of which two tokens cannot reach all."""
    return Opened(make_family("mixtral", tmp_path_factory.mktemp("mixtral") / "model"))


# ------------------------------------------------------------------------------------------- arithmetic written out


def half(values: torch.Tensor) -> torch.Tensor:
    """Numbers as float16 stores them, in float64."""
    return values.to(torch.float16).to(torch.float64)


def w4(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Symmetric 4-bit integers with a scale max|w| / 7 for every group of columns."""
    made = weight.double().clone()
    for row in range(len(made)):
        for start in range(0, made.shape[1], group):
            part = made[row, start : start + group]
            scale = half(part.abs().max() / 7)
            made[row, start : start + group] = (part / scale).round().clamp(-7, 7) * scale
    return made


def asymmetric(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers with one scale (max - min) / (2^b - 1) and one zero point; 0 is within the range."""
    low, high, most = values.min().clamp(max=0.0), values.max().clamp(min=0.0), 2**bits - 1
    scale = half((high - low) / most)
    zero = (-low / scale).round().clamp(0, most)
    return (((values / scale).round() + zero).clamp(0, most) - zero) * scale


def activations(window: torch.Tensor, bits: int, scope: str) -> torch.Tensor:
    values = window.double()
    return asymmetric(values, bits) if scope == "tensor" else torch.stack([asymmetric(v, bits) for v in values])


@pytest.mark.parametrize("scope", ["tensor", "token"])
@pytest.mark.parametrize("scaled", [False, True])
def test_output_errors_are_those_of_the_arithmetic_written_out(scope, scaled):
    torch.manual_seed(3)
    weight, inputs = torch.randn(6, 160), [torch.randn(5, 160) * 3, torch.randn(9, 160)]
    scale = 0.5 + torch.rand(160) if scaled else None
    s = torch.ones(160) if scale is None else scale
    choices = (*activation_choices(scope), Choice("int4", group_size=128), WHOLE)
    wanted = []
    for bits in (4, 8):
        made = [activations(x / s, bits, scope) @ w4(weight * s, 128).T for x in inputs]
        wanted.append(squares(made, weight, inputs))
    # Candidates that leave activations whole are measured on the weights as they are.
    wanted += [squares([x.double() @ w4(weight, 128).T for x in inputs], weight, inputs), 0.0]
    assert output_errors(weight, inputs, choices, scale) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def squares(made, weight, inputs) -> float:
    """The mean over all tokens and outputs of the squared difference to X W^T."""
    exact = [x.double() @ weight.double().T for x in inputs]
    return torch.cat([(m - e).square().flatten() for m, e in zip(made, exact, strict=True)]).mean().item()


def test_errors_worked_out_by_hand():
    # Inputs 0 to 15 are 4-bit integers with scale 1; the weights 7 and -3.4 become 7 and -3 with scale 1.
    weight, window = torch.tensor([[7.0, -3.4]]), torch.tensor([[15.0, 0.0], [0.0, 5.0]])
    error = output_errors(weight, [window], [Choice("int4", "int4_tensor", 128)])
    assert error == pytest.approx([((5 * 0.4) ** 2) / 2], rel=1e-5)
    assert weighted_error(weight, torch.tensor([[7.0, -3.0]]), torch.tensor([9.0, 25.0])) == pytest.approx(4.0)


def test_windows_are_quantized_each_by_itself():
    weight, small, large = torch.eye(4), torch.rand(3, 4), 100 * torch.rand(3, 4)
    choice = [Choice("bf16", "int4_tensor")]
    apart = output_errors(weight, [small, large], choice)[0]
    each = [output_errors(weight, [window], choice)[0] for window in (small, large)]
    assert apart == pytest.approx(sum(each) / 2)
    assert output_errors(weight, [torch.cat((small, large))], choice)[0] != pytest.approx(apart, rel=1e-3)


def test_the_weighted_error_is_the_mse_where_columns_are_uncorrelated():
    torch.manual_seed(5)
    weight = torch.randn(7, 32)
    # Columns of an orthogonal matrix times sizes of their own: X^T X is diagonal.
    inputs = torch.linalg.qr(torch.randn(64, 32))[0] * (0.1 + 3 * torch.rand(32))
    choice = Choice("int4", group_size=32)
    mean_square = inputs.double().square().mean(0)
    made = choice.weights(weight, None)
    assert weighted_error(weight, made, mean_square) == pytest.approx(output_errors(weight, [inputs], [choice])[0])
    correlated = inputs[:, :1] + 0.01 * inputs
    mean_square = correlated.double().square().mean(0)
    mse = output_errors(weight, [correlated], [choice])[0]
    assert abs(weighted_error(weight, made, mean_square) / mse - 1) > 0.1


# ------------------------------------------------------------------------------------------------------- the table


def test_rows_cover_every_layer_and_candidate_in_model_order(llama):
    choices = (*activation_choices("tensor"), Choice("q8_0"))
    rows, smoothing = llama.measured(*choices)
    wanted = [(layer.name, c.wq, c.aq) for layer in llama.info.quantizable for c in choices]
    assert [(row["layer"], row["format"], row["inputs"]) for row in rows] == wanted and len(wanted) == 14 * 3
    for row, (layer, choice) in zip(rows, [(a, c) for a in llama.info.quantizable for c in choices], strict=True):
        assert (row["params"], row["category"]) == (layer.params, layer.category)
        assert row["smoothed"] == ("" if choice.wq == "q8_0" else smoothing.short_digest)
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in FIGURES)
    up = {row["format"]: row["bytes"] for row in rows if row["layer"] == "model.layers.0.mlp.up_proj"}
    # 96 x 64: int4 has one scale of 16 bits a row of 64, q8_0 34 bytes for each 32 values.
    assert up == {"int4": 96 * (32 + 2), "q8_0": 96 * 2 * 34}


def test_the_figures_of_a_row_are_those_of_the_full_precision_models_inputs(llama):
    rows, smoothing = llama.measured(*activation_choices("tensor"), Choice("int4"), tokens=10**6)
    module = AutoModelForCausalLM.from_pretrained(llama.checkpoint.folder, dtype=torch.float32).eval()
    seen = {}
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0]}))
    with torch.inference_mode():
        module(llama.tokens)
    by = {(row["layer"], row["format"], row["inputs"]): row for row in rows}
    for layer in llama.info.quantizable:
        weight, inputs = module.get_submodule(layer.name).weight.detach(), list(seen[layer.name])
        scale = smoothing.factor(layer.name)
        for bits in (4, 8):
            made = [activations(x / scale, bits, "tensor") @ w4(weight * scale, 128).T for x in inputs]
            assert by[layer.name, "int4", f"int{bits}_tensor"]["mse"] == pytest.approx(
                squares(made, weight, inputs), rel=0.02
            )
        row, plain = by[layer.name, "int4", "bf16"], w4(weight, 128)
        signal = torch.cat([x.double() @ weight.double().T for x in inputs]).square().mean().item()
        mean_square = torch.cat(inputs).double().square().mean(0)
        assert row["mse"] == pytest.approx(squares([x.double() @ plain.T for x in inputs], weight, inputs), rel=1e-3)
        assert row["relative_mse"] == pytest.approx(row["mse"] / signal, rel=1e-3)
        error = (((weight.double() - plain) ** 2) * mean_square).sum().item() / len(weight)
        assert row["weighted_error"] == pytest.approx(error, rel=1e-3)


def test_no_more_tokens_are_looked_at_than_asked_for_but_ranges_are_of_all(llama):
    seen = {}

    def visit(block, hidden, forward):
        with observe_inputs(block, 40) as found:
            output = forward(hidden)
        seen.update({name: sum(map(len, held)) for name, held in found.samples.items()})
        assert set(found.tokens.values()) == {4 * 32}
        return output

    llama.model.run(llama.tokens, visit)
    # 40 tokens need two windows of 32.
    assert set(seen.values()) == {64} and len(seen) == 14


def test_how_windows_are_batched_does_not_matter(llama):
    rows, _ = llama.measured(*activation_choices("tensor"))
    kept, llama.model.tokens_per_batch = llama.model.tokens_per_batch, 32
    again, _ = llama.measured(*activation_choices("tensor"))
    llama.model.tokens_per_batch = kept
    assert [r["mse"] for r in again] == pytest.approx([r["mse"] for r in rows], rel=1e-3)


def test_a_table_takes_one_walk(llama):
    before = llama.model.tokens_forwarded
    llama.measured(*activation_choices("tensor"), Choice("q8_0"), alphas=(0.3, 0.5, 0.7))
    # Four windows through two blocks, and the first of them again to see that folding changed nothing.
    assert llama.model.tokens_forwarded - before == (4 + 1) * 32 * 2


def test_with_an_importance_matrix_ggufs_types_are_quantized_with_it(llama):
    importance = {layer.name: torch.rand(layer.shape[1]).square() for layer in llama.info.quantizable}
    settings = SensitivitySettings((Choice("q4_0"), Choice("int4")), tokens=128)
    plain, _ = measure_sensitivity(llama.model, llama.info, llama.tokens, settings)
    made, _ = measure_sensitivity(llama.model, llama.info, llama.tokens, settings, importance=importance)
    assert [r["mse"] for r in made if r["format"] == "int4"] == [r["mse"] for r in plain if r["format"] == "int4"]
    assert [r["bytes"] for r in made] == [r["bytes"] for r in plain]
    row = next(r for r in made if r["format"] == "q4_0")
    weight = llama.checkpoint.read([f"{row['layer']}.weight"])[f"{row['layer']}.weight"].float()
    wanted = FORMATS["q4_0"].roundtrip(weight, importance=importance[row["layer"]])
    alone = weighted_error(weight, wanted, importance[row["layer"]])
    without = weighted_error(weight, FORMATS["q4_0"].roundtrip(weight), importance[row["layer"]])
    assert alone < without
    assert torch.equal(Choice("q4_0").weights(weight, None, importance=importance[row["layer"]]), wanted)
    assert row["mse"] != next(r for r in plain if r["format"] == "q4_0")["mse"]


def test_the_importance_of_a_smoothed_input_is_that_of_its_quotient(llama):
    weight, scale, importance = torch.randn(8, 64), 0.5 + torch.rand(64), torch.rand(64)
    made = Choice("q4_0", "int4_token").weights(weight, scale, importance=importance)
    assert torch.equal(made, FORMATS["q4_0"].roundtrip(weight * scale, importance=importance / scale**2))


def test_without_alphas_nothing_is_smoothed(llama):
    rows, smoothing = llama.measured(alphas=())
    assert smoothing is None and {row["smoothed"] for row in rows} == {""}


def test_of_several_alphas_the_one_with_the_least_error_is_taken(llama):
    each = {alpha: llama.measured(alphas=(alpha,)) for alpha in (0.3, 0.7)}
    _, best = llama.measured(alphas=(0.3, 0.7))
    assert {group.alpha for group in best.groups} <= {0.3, 0.7}
    for group in best.groups:
        total = {a: sum(r["mse"] for r in rows if r["layer"] in group.layers) for a, (rows, _) in each.items()}
        assert group.alpha == min(total, key=total.get)


def test_formats_that_do_not_fit_a_layer_are_measured_in_their_substitute_once(llama):
    rows, _ = llama.measured(Choice("q2_k"), Choice("q3_k"), Choice("q4_0"), Choice("q8_0"))
    plain = [row for row in rows if row["inputs"] == "bf16"]
    found = {(row["format"], row["asked"]) for row in plain}
    assert found == {("q4_0", "q2_k q3_k q4_0"), ("q8_0", "q8_0")}
    assert len(plain) == 2 * len({row["layer"] for row in rows})


# --------------------------------------------------------------------------------------------------- Gaussian inputs


def test_random_inputs_give_the_same_table_whatever_the_text_says(llama):
    other = llama.tokens.flip(0, 1) + 1
    tables = [llama.measured(random=True, text=text)[0] for text in (llama.tokens, llama.tokens, other)]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0] != llama.measured()[0]


def test_random_inputs_are_standard_normal_and_of_each_input_its_own(llama, monkeypatch):
    from bitplan.sensitivity import local_errors as sensitivity

    seen = {}
    kept = sensitivity.layer_rows

    def noting(layer, weight, choices, made, inputs, *rest):
        seen[layer.name] = torch.cat(inputs.samples[layer.name])
        return kept(layer, weight, choices, made, inputs, *rest)

    monkeypatch.setattr(sensitivity, "layer_rows", noting)
    llama.measured(random=True)
    values = torch.cat([x.flatten() for x in seen.values()])
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    first, second = "model.layers.0.self_attn", "model.layers.1.self_attn"
    assert torch.equal(seen[f"{first}.q_proj"], seen[f"{first}.k_proj"])
    assert not torch.equal(seen[f"{first}.q_proj"], seen[f"{first}.o_proj"])
    assert not torch.equal(seen[f"{first}.q_proj"], seen[f"{second}.q_proj"])


# ----------------------------------------------------------------------------------------------------------- experts


@pytest.mark.parametrize("random", [False, True])
def test_experts_that_no_token_reached_have_empty_figures(mixtral, random):
    def visit(block, hidden, forward):
        with observe_inputs(block, 64) as seen:
            output = forward(hidden)
        unreached.update(name for name in block.layers if "experts" in name and name not in seen.tokens)
        return output

    unreached: set[str] = set()
    few = mixtral.tokens[:1, :2]
    mixtral.model.run(few, visit)
    rows, smoothing = mixtral.measured(random=random, text=few)
    empty = {row["layer"] for row in rows if all(math.isnan(row[name]) for name in FIGURES)}
    assert empty == unreached and empty
    assert {row["layer"] for row in rows if row["tokens"] == 0} == unreached
    assert all(row["bytes"] > 0 for row in rows) and len(rows) == 2 * len(mixtral.info.quantizable)
    assert all(torch.isfinite(group.scale).all() and (group.scale > 0).all() for group in smoothing.groups)


# --------------------------------------------------------------------------------------------------- ratio and classes


def test_the_ratio_is_the_error_of_a4_over_that_of_a8():
    assert sensitivity_ratio(6.0, 2.0) == 3.0
    assert sensitivity_ratio(0.0, 0.0) == 1.0 and sensitivity_ratio(1.0, 0.0) == math.inf
    assert math.isnan(sensitivity_ratio(math.nan, math.nan))


def test_layers_are_sensitive_above_two_and_a_half_and_at_the_edges_above_one_and_a_half():
    made = classes([2.0] * 20)
    assert made == ["high"] * 7 + ["low"] * 6 + ["high"] * 7
    assert classes([1.5] * 20) == ["low"] * 20
    assert classes([2.5] * 20)[7:13] == ["low"] * 6 and classes([2.51] * 20) == ["high"] * 20
