"""Second moments of few tokens are shrunk towards their diagonal by their noise, which the halves of the text show."""

import pytest
import torch
from torch import nn

from bitplan.models.walk import Block
from bitplan.statistics.hessian import CrossMoments, InputMoments
from bitplan.statistics.shrinkage import (
    HalvedMoments,
    collect_halves,
    count_window_,
    noise_share,
    shrink_,
    shrunk_cross_,
)


def moments_of(inputs: torch.Tensor) -> InputMoments:
    moments = InputMoments.empty(inputs.shape[1], inputs.device, inputs.dtype)
    moments.add_(inputs)
    return moments


def halved(inputs: torch.Tensor, first: int | None = None) -> HalvedMoments:
    cut = len(inputs) // 2 if first is None else first
    return HalvedMoments(moments_of(inputs[:cut]), moments_of(inputs[cut:]))


def drawn(tokens: int, mixing: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, len(mixing), generator=generator, dtype=mixing.dtype) @ mixing


def correlated(columns: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(columns).double() + torch.randn(columns, columns, generator=generator).double() / columns**0.5


def test_the_diagonal_stays_and_the_rest_is_multiplied():
    hessian = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    assert torch.equal(shrink_(hessian, 0.25), torch.tensor([[2.0, 0.75], [0.75, 4.0]]))


@pytest.mark.parametrize("first", [40, 100])
def test_the_noise_is_that_of_the_means_of_all_tokens_however_they_are_split(first):
    # Of independent columns every correlation is noise, of variance 1 / tokens.
    shares = [halved(drawn(200, torch.eye(64).double(), seed), first).noise for seed in range(8)]
    assert sum(shares) / len(shares) == pytest.approx(1, abs=0.06)


def test_the_noise_falls_with_the_number_of_tokens():
    mixing = correlated(64)
    shares = [halved(drawn(tokens, mixing)).noise for tokens in (32, 128, 512, 2048)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.5 and shares[-1] < 0.05


@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_the_shrunk_moments_are_nearer_to_those_of_all_text_than_the_plain_ones(tokens):
    mixing = correlated(64)
    truth, halves = 2 * mixing.T @ mixing, halved(drawn(tokens, mixing))
    assert (halves.hessian - truth).norm() < 0.9 * (halves.plain - truth).norm()
    assert torch.equal(halves.hessian.diagonal(), halves.plain.diagonal())


def test_scaling_columns_as_smoothing_does_changes_no_share():
    inputs, scale = drawn(100, correlated(32)), torch.linspace(0.01, 100, 32).double()
    assert halved(inputs * scale).noise == pytest.approx(halved(inputs).noise)


def test_dead_columns_and_a_half_without_tokens_give_finite_moments():
    inputs = drawn(50, correlated(16))
    inputs[:, 3] = 0
    assert halved(inputs).hessian.isfinite().all() and halved(inputs).hessian[3].eq(0).all()
    lonely = halved(inputs, 0)
    assert lonely.noise == lonely.shrinkage == 1
    assert torch.equal(lonely.hessian, torch.diag(lonely.plain.diagonal()))
    assert noise_share((torch.zeros(2, 2), torch.zeros(2, 2)), (1, 1), torch.ones(2)) == 0


class TwoLayers(nn.Module):
    """Two layers that read the same tensor and one that reads the first one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        first, second = self.first(hidden), self.second(hidden)
        return self.third(first) + second


@torch.no_grad()
@pytest.mark.parametrize("windows", [1, 2, 5])
def test_halves_are_the_first_and_the_last_windows_or_tokens_of_one_and_layers_share_them(windows):
    made, hidden = TwoLayers(), torch.randn(windows, 6, 4, generator=torch.Generator().manual_seed(0))
    block = Block(0, "", made, dict(made.named_children()))
    halves = collect_halves(block, hidden, made)
    parts = hidden.reshape(-1, 4).tensor_split(2) if windows == 1 else [half.reshape(-1, 4) for half in hidden.chunk(2)]
    for side, part in zip((halves["first"].first, halves["first"].second), parts, strict=True):
        torch.testing.assert_close(side.hessian, moments_of(part).hessian)
    assert halves["first"] is halves["second"] and halves["third"] is not halves["first"]
    cross = CrossMoments.empty(4, hidden.device)
    for number, window in enumerate(hidden.split(1)):
        count_window_(cross, window, 2 * window, number, windows)
    assert cross.tokens == [side.tokens for side in (halves["first"].first, halves["first"].second)]
    torch.testing.assert_close(cross.matrix, halves["first"].plain)


def test_cross_moments_that_the_halves_do_not_share_are_shrunk_to_nothing():
    generator = torch.Generator().manual_seed(2)
    inputs, noise = (torch.randn(64, 32, generator=generator) for _ in range(2))
    steady, random = CrossMoments.empty(32, inputs.device), CrossMoments.empty(32, inputs.device)
    for half, some in enumerate((slice(32), slice(32, 64))):
        steady.add_(inputs[some], 1.5 * inputs[some], half)
        random.add_(inputs[some], inputs[some] + noise[some], half)
    for cross in (steady, random):
        torch.testing.assert_close(cross.diagonal, moments_of(inputs).hessian.diagonal())
    whole = [each.matrix.norm() for each in (steady, random)]
    assert shrunk_cross_(steady).norm() > 0.4 * whole[0]
    assert shrunk_cross_(random).norm() < 0.1 * whole[1]
