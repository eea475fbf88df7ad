"""The copy of a model with outlier channels: the same function, and channels that are as large as asked for."""

import argparse
import importlib.util
import sys

import pytest
import torch

from bitplan.reference.opening import prepare_model
from bitplan.reference.reference import make_reference
from tests.conftest import ROOT
from tests.families import make_family

TEXT = ROOT / "demo" / "evaluation.txt"


@pytest.fixture(scope="module")
def outliers():
    spec = importlib.util.spec_from_file_location("outliers", ROOT / "benchmarks" / "outliers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["outliers"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(outliers, tmp_path_factory):
    """A small Qwen2 (biases, shared heads of keys and values) and its copy, each with mean x^2 of its layers' inputs."""
    place = tmp_path_factory.mktemp("outliers")
    make_family("qwen2", place / "plain")
    args = argparse.Namespace(calibration=TEXT, windows=2)
    outliers.LENGTH = 32
    importance = outliers.importance_of(place / "plain", place, args)
    outliers.make_outlier_model(place / "plain", place / "copy", importance, 0.001, 64.0)
    (place / "beside").mkdir()
    return place, importance, outliers.importance_of(place / "copy", place / "beside", args)


def test_the_copy_computes_the_same_function(both):
    place, _, _ = both
    plain, copy = (
        make_reference(prepare_model(place / name, "fp32", "cpu", 1).model, TEXT, 32, 2, "fp32")
        for name in ("plain", "copy")
    )
    assert torch.allclose(plain.hidden, copy.hidden, rtol=1e-5, atol=1e-6)


def test_what_norms_write_has_outliers_of_the_asked_size_in_the_same_channel_of_every_block(both):
    _, before, after = both
    fed = [name for name in after if name.endswith(("q_proj", "gate_proj"))]
    sizes = {name: after[name].sqrt() for name in fed}
    ratios = [(values.max() / values.median()).item() for values in sizes.values()]
    assert all(20 <= ratio <= 100 for ratio in ratios), "a power of two next to 64"
    assert len({int(values.argmax()) for values in sizes.values()}) == 1
    assert all((before[name].sqrt().max() / before[name].sqrt().median()) < 20 for name in fed)


def test_factors_are_powers_of_two_and_mostly_one(outliers):
    factors = outliers.tails(10_000, torch.Generator().manual_seed(0))
    assert set(factors.tolist()) == {0.25, 0.5, 1.0, 2.0, 4.0} and (factors == 1).float().mean() > 0.5
