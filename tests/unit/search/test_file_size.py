"""Optimal plans with a limit on the file's size: what is written is at most as large, and nearly so."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.reference.opening import PreparedModel
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.runtime import ExportJob
from bitplan.search.optimal.file_size import budget_of_size
from bitplan.search.optimal.held import held_table
from bitplan.search.optimal.reach import file_out_of_reach, problem_of_shapes
from bitplan.search.optimal.run import OptimalSearch, OptimalSettings
from bitplan.sensitivity.table import SensitivityTable
from tests.families import make_family

PALETTES = {
    "gguf": ("q4_0", "q5_0", "q8_0"),
    "mlx": ("int3_g32", "int4_g32", "int5_g32", "int8_g32"),
    "compressed_tensors": ("int4_g32", "int8_g32"),
    "auto_round": ("int3_g32", "int4_g32", "int8_g32"),
}
SETTINGS = {"gguf": {"unquantized": "f16", "match": "exact", "max_error": 1e-3}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> PreparedModel:
    checkpoint = Checkpoint.open(make_family("llama", tmp_path_factory.mktemp("sizes") / "model"))
    return PreparedModel(checkpoint, describe(checkpoint), "fp32")


@pytest.fixture(scope="module")
def base(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(model.checkpoint, path)
    return path


def search_of(model: PreparedModel, name: str) -> OptimalSearch:
    """A search by damages of no model: what they are does not matter for the size."""
    layers, palette = model.info.quantizable, PALETTES[name]
    params = np.array([float(layer.params) for layer in layers])
    kld = np.random.default_rng(0).random((len(layers), 1)) * 2.0 ** -np.arange(len(palette))
    names = tuple(layer.name for layer in layers)
    table = SensitivityTable(names, palette, params, np.ones(kld.shape), kld, ("",) * len(layers))
    held = held_table(table, [runtime_named(name)], model.info, stored=True)
    settings = OptimalSettings(palette, correct=False, groups="none", stored_sizes=True)
    return OptimalSearch(model, held, settings, QuantizedWeights())


def written_bytes(model: PreparedModel, name: str, base: Path, output: Path, search: OptimalSearch, size: str) -> int:
    """Return the size of the file, or of the whole folder, of the plan for a size."""
    runtime = runtime_named(name)
    plan, _ = search.run(budget_of_size(search, size, [runtime], base))
    how = {"settings": SETTINGS.get(name, {"fusion": "keep"}), "base": base if name == "gguf" else None}
    shutil.rmtree(output, ignore_errors=True)
    runtime.write(ExportJob(model.checkpoint, model.info, plan, output, **how))
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def range_of(search: OptimalSearch, name: str, base: Path) -> tuple[float, float]:
    """Return the sizes in kB that the refusal of a size names."""
    with pytest.raises(UserError, match="SEARCH-TARGET-OUT-OF-REACH.*at most 1kB") as raised:
        budget_of_size(search, "1kB", [runtime_named(name)], base)
    words = raised.value.problems[0].hint.split("allows ")[1].split(":")[0].replace("KB", "").split(" to ")
    return float(words[0]), float(words[1])


@pytest.mark.parametrize("name", PALETTES)
def test_what_is_written_is_at_most_as_large_as_the_limit(name, model, base, tmp_path):
    search = search_of(model, name)
    low, high = range_of(search, name, base)
    # What is reserved for headers and configuration is more of this model of 100 kB than of any real one.
    unused = 6 if name == "gguf" else 64
    for size in (low, (low + high) / 2, high):
        written = written_bytes(model, name, base, tmp_path / "made", search, f"{size:.1f}kB") / 1000
        assert size - unused < written <= size + 0.1, (name, size)


def test_a_runtime_whose_sizes_are_not_known_is_refused(model, base):
    unknown = dataclasses.replace(runtime_named("mlx"), bytes_besides=None)
    with pytest.raises(UserError, match="--max-size.*mlx"):
        budget_of_size(search_of(model, "mlx"), "1MB", [unknown], base)


def test_a_ggufs_size_needs_the_file_that_it_is_made_from(model):
    with pytest.raises(UserError, match="--base: is required"):
        budget_of_size(search_of(model, "gguf"), "1MB", [runtime_named("gguf")], None)


def test_a_size_that_the_weights_alone_exceed_is_refused_from_shapes(model):
    problem = problem_of_shapes(model.info, PALETTES["gguf"], (), [runtime_named("gguf")], stored=True)
    wrong = file_out_of_reach(problem, model.info, "1KB")
    assert (wrong.code, wrong.where) == ("SEARCH-TARGET-OUT-OF-REACH", "max_size") and "KB to " in wrong.hint
    assert file_out_of_reach(problem, model.info, "1MB") is None
