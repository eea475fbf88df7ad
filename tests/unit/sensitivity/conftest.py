"""Models of families for the tests of sensitivity, each made once for a file of tests."""

import pytest

from tests.families import make_family
from tests.measured_models import Model


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A function that makes the model of a family, once."""
    models: dict[str, Model] = {}

    def of(name: str) -> Model:
        if name not in models:
            models[name] = Model(make_family(name, tmp_path_factory.mktemp(name) / "model"))
        return models[name]

    return of


@pytest.fixture(scope="module")
def llama(family) -> Model:
    return family("llama")
