"""The sensitivity table with measured KL: made, resumed, and merged from the tables of shards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import read_table
from bitplan.core.resume import PartialResults, digest_of
from bitplan.models.layers import ModelInfo
from bitplan.plans.smoothing import Smoothing, read_smoothing, smoothing_path
from bitplan.reference.opening import PreparedModel
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.embeddings import embedding_candidates
from bitplan.sensitivity.fitted import with_fitted
from bitplan.sensitivity.kld import mean_and_error
from bitplan.sensitivity.local_errors import COLUMNS, SensitivitySettings
from bitplan.sensitivity.passes import FIT, Measured, Measurement, planned
from bitplan.sensitivity.priced import with_price
from bitplan.statistics.layer_stats import read_alphas

MADE_AGAIN = "Make it again with scripts/sensitivity.py"


def measure_table(
    model: PreparedModel,
    tokens: Tensor,
    settings: SensitivitySettings,
    measure: MeasureSettings,
    output: Path,
    alphas: Mapping[str, float] | None = None,
    importance: Mapping[str, Tensor] = MappingProxyType({}),
) -> Measured:
    """Return the rows of the shard's layers with KL measured and fitted, the smoothing, and the cost in block-forwards.

    What is done is kept beside `output`, and an earlier run of the same that was stopped is gone on with. `alphas` by layer fill the
    column of that name; without them they are found from the weights. Weights are quantized with `importance` {layer: (in,)}.
    Raises `UserError`.
    """
    plan = planned(model.model, model.info, tokens, settings, measure)
    outside = embedding_candidates(model.info, measure.embeddings)
    # How much memory there is changes the order of the work, and no figure.
    of_figures = replace(measure, memory_limit=0)
    facts = {
        **{**model.facts, "tokens": tokens, "shape": tuple(tokens.shape)},
        **{"settings": settings, "measure": of_figures, "alphas": alphas, "importance": dict(importance)},
    }
    with PartialResults.open(output, digest_of(facts)).remove_on_user_error() as kept:
        made = Measurement(model.model, model.info, tokens, settings, measure, kept, alphas, importance)
        found = made.run(plan, outside if measure.shard[0] == 1 else ())
    return replace(found, rows=with_fitted([with_price(_with_kld(row)) for row in found.rows]))


def _with_kld(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the mean of its windows' KL and the standard error of that; None for both where it was not measured."""
    by_window = row["by_window"]
    if by_window is None:
        return {**row, "kld": None, "kld_se": None, "kld_from": ""}
    mean, error = mean_and_error(by_window)
    return {**row, "kld": mean, "kld_se": error, "kld_from": "measured"}


def read_known_alphas(table: Path | None, info: ModelInfo) -> dict[str, float] | None:
    """Return {layer: alpha} of a layer_stats.tsv; None without one. Raises `UserError` for another model's."""
    if table is None:
        return None
    found = read_alphas(table, FIT)
    absent = [layer.name for layer in info.quantizable if layer.name not in found]
    if absent:
        raise user_error(table, f"has no row for {absent[0]}", "Make it again with scripts/layer_stats.py")
    return found


def merged(tables: Sequence[Path], info: ModelInfo) -> tuple[list[dict[str, str]], Smoothing]:
    """Return the rows of shards' tables in model order, and their smoothing.

    Raises `UserError` unless every layer is in exactly one of them, with the same choices, under the same smoothing. What stands
    outside the blocks comes last, where one of them has it.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for table in tables:
        own: dict[str, list[dict[str, str]]] = {}
        for row in read_table(table, COLUMNS):
            own.setdefault(row["layer"], []).append(row)
        twice = sorted(own.keys() & found.keys())
        if twice:
            raise user_error(table, f"has rows for {twice[0]}, which another shard has too", "Give each shard once")
        found |= own
    _check_layers(tables, found, info)
    smoothings = [read_smoothing(smoothing_path(table)) for table in tables]
    if len({smoothing.digest for smoothing in smoothings}) > 1:
        raise user_error(smoothing_path(tables[-1]), "has other factors than the other shards'", MADE_AGAIN)
    outside = [layer for layer in info.layers if layer.is_embedding]
    return [row for layer in (*info.quantizable, *outside) for row in found.get(layer.name, ())], smoothings[0]


def _check_layers(tables: Sequence[Path], found: Mapping[str, Sequence[Mapping[str, str]]], info: ModelInfo) -> None:
    """Raise `UserError` unless the shards' rows are those of the model's layers, alike for each."""
    where, names = " ".join(map(str, tables)), [layer.name for layer in info.quantizable]
    absent = [name for name in names if name not in found]
    known = {*names, *(layer.name for layer in info.layers if layer.is_embedding)}
    foreign = [name for name in found if name not in known]
    if absent:
        raise user_error(where, f"have no row for {absent[0]}", "Give the tables of all shards")
    if foreign:
        raise user_error(where, f"have rows for {foreign[0]}, which the model does not have", "Give --model as it was")
    kinds = {name: _kinds(found[name]) for name in names}
    other = [name for name in names if kinds[name] != kinds[names[0]]]
    if other:
        raise user_error(where, f"{other[0]} was measured in other formats than {names[0]}", MADE_AGAIN)


def _kinds(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """Return what a layer was measured in, as it was asked for: layers with rows of other lengths may have other substitutes."""
    return sorted((asked, row["inputs"], row["group_size"]) for row in rows for asked in row["asked"].split())
