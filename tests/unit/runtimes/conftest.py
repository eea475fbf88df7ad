"""The bundled model and its full-precision GGUF file."""

import pytest

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.runtimes.gguf.convert import convert


@pytest.fixture(scope="module")
def model(demo):
    checkpoint = Checkpoint.open(demo / "model")
    return checkpoint, describe(checkpoint)


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(model[0], path)
    return path
