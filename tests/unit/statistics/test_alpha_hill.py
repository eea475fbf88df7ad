"""Alpha-Hill: the formula, both fits, and the Gram matrix against the SVD."""

import math

import pytest
import torch

from bitplan.statistics.alpha_hill import alpha_hill, spectrum, tail_length


def test_alpha_of_a_spectrum_worked_out_by_hand():
    # n = 12, k = max(10, 1) = 10; l_i = 2^i: sum_{i=1..10} ln(l_{n-i+1} / l_2) = ln 2 * (1 + ... + 10) = 55 ln 2.
    eigenvalues = torch.tensor([2.0**i for i in range(1, 13)])
    assert alpha_hill(eigenvalues) == pytest.approx(1 + 10 / (55 * math.log(2)))


def test_xmin_mid_takes_the_upper_half_and_counts_xmin():
    # n = 4: tail l_3, l_4 with xmin l_3: 1 + 2 / (0 + ln 2).
    assert alpha_hill(torch.tensor([1.0, 2.0, 4.0, 8.0]), "xmin_mid") == pytest.approx(1 + 2 / math.log(2))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (8, 7), (11, 10), (100, 10), (256, 25)])
def test_a_tenth_of_the_eigenvalues_is_fitted_but_ten_at_least(n, k):
    assert tail_length(n, "hill") == k


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
def test_the_gram_matrix_gives_the_alpha_of_the_svd(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.svdvals(weight.double()).square().flip(0)
    for fit in ("hill", "xmin_mid"):
        assert alpha_hill(spectrum(weight), fit) == pytest.approx(alpha_hill(exact, fit), abs=1e-3)


def test_alpha_does_not_depend_on_the_scale_of_the_weights():
    weight = torch.randn(48, 80)
    assert alpha_hill(spectrum(1000 * weight)) == pytest.approx(alpha_hill(spectrum(weight)), rel=1e-4)


@pytest.mark.parametrize("weight", [torch.zeros(16, 16), torch.ones(1, 8), torch.outer(torch.ones(20), torch.ones(30))])
def test_a_spectrum_without_a_tail_gives_nan(weight):
    assert math.isnan(alpha_hill(spectrum(weight)))


def test_alpha_of_the_shared_model_is_the_known_one(assets):
    from bitplan.models.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(assets / "tinystories-656k")
    names = {"model.layers.1.self_attn.q_proj.weight": 2.62, "model.layers.0.self_attn.v_proj.weight": 8.91}
    for name, tensor in checkpoint.read(names).items():
        assert alpha_hill(spectrum(tensor)) == pytest.approx(names[name], abs=0.005)


@pytest.mark.parametrize("decay", [1.5, 2.0])
def test_alpha_of_a_steep_spectrum_is_that_of_the_svd(decay):
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(256, 256, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    sizes = torch.arange(1, 257, dtype=torch.float64) ** -decay
    weight = (left * sizes) @ right
    exact = torch.linalg.svdvals(weight.float().double()).square().flip(0)
    for fit in ("hill", "xmin_mid"):
        assert alpha_hill(spectrum(weight.float()), fit) == pytest.approx(alpha_hill(exact, fit), abs=1e-3)


def test_a_rank_that_ends_inside_the_tail_gives_nan_and_not_the_noise_of_rounding():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, 5, generator=generator) @ torch.randn(5, 100, generator=generator)
    assert math.isnan(alpha_hill(spectrum(weight)))
