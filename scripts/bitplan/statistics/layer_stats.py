"""The table of layer statistics, measured in one walk over the calibration text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import read_table, write_table
from bitplan.core.resume import HIDDEN, NOT_SAVED, WalkPosition, WalkProgress
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel, Visit
from bitplan.plans.apply import weight_of
from bitplan.statistics.activations import InputStatistics, collect_inputs
from bitplan.statistics.alpha_hill import FITS, alpha_hill, spectrum
from bitplan.statistics.importance import write_importance
from bitplan.statistics.weights import weight_moments

COLUMNS = (
    *("layer", "category", "out", "in", "params"),
    *(f"alpha_{fit}" for fit in FITS),
    *("weight_mean", "weight_absmax", "weight_variance", "weight_kurtosis"),
    *("input_mean_abs", "input_mean_square", "input_absmax", "tokens"),
)

SUMS = ("sum_abs", "sum_squares", "absmax")


def weight_row(layer: Layer, weight: Tensor) -> dict[str, Any]:
    """Return the columns of a layer's row that depend on its weight (out, in) only."""
    eigenvalues = spectrum(weight)
    alphas = {f"alpha_{fit}": alpha_hill(eigenvalues, fit) for fit in FITS}
    shape = {"out": layer.shape[0], "in": layer.shape[1], "params": layer.params}
    return {"layer": layer.name, "category": layer.category, **shape, **alphas, **weight_moments(weight)}


def _input_row(seen: InputStatistics) -> dict[str, float]:
    return {
        "input_mean_abs": seen.mean_abs.mean().item(),
        "input_mean_square": seen.mean_square.mean().item(),
        "input_absmax": seen.absmax.max().item(),
        "tokens": seen.tokens,
    }


@dataclass
class _Measured:
    """The results of a walk so far, by layer: rows of the weights and statistics of the inputs."""

    rows: dict[str, dict[str, Any]]
    inputs: dict[str, InputStatistics]

    @classmethod
    def of(cls, reached: WalkPosition) -> "_Measured":
        """Return the results saved by an interrupted walk."""
        sums: dict[str, dict[str, Tensor]] = {}
        for key, values in reached.tensors.items():
            name, _, part = key.rpartition("|")
            sums.setdefault(name, {})[part] = values
        tokens = reached.facts.get("tokens", {})
        inputs = {name: InputStatistics(count, *(sums[name][part] for part in SUMS)) for name, count in tokens.items()}
        return cls(dict(reached.facts.get("rows", {})), inputs)

    def progress(self, hidden: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return these results and the hidden states as tensors and facts to save."""
        sums = {f"{name}|{part}": getattr(seen, part) for name, seen in self.inputs.items() for part in SUMS}
        tokens = {name: seen.tokens for name, seen in self.inputs.items()}
        return {HIDDEN: hidden, **sums}, {"rows": self.rows, "tokens": tokens}


def _measure(layers: Mapping[str, Layer], measured: _Measured, walk: WalkProgress) -> Visit:
    watch = collect_inputs(measured.inputs)

    def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        """Measure the weights of a block, collect the inputs of its layers, and keep how far the walk is."""
        for name, module in block.layers.items():
            if name in layers:
                measured.rows[name] = weight_row(layers[name], weight_of(module, layers[name]))
        output = watch(block, hidden, forward)
        walk.keep(block.index + 1, lambda: measured.progress(output))
        return output

    return visit


def measure_layers(
    model: StreamedModel, info: ModelInfo, tokens: Tensor, walk: WalkProgress = NOT_SAVED
) -> tuple[list[dict[str, Any]], dict[str, InputStatistics], Tensor]:
    """Return the rows of the table in model order, the inputs' statistics by layer, and the final hidden states of `tokens`.

    An interrupted walk is resumed.
    """
    layers = {layer.name: layer for layer in info.quantizable}
    reached = walk.reached()
    measured, start = _Measured.of(reached), reached.tensors.get(HIDDEN)
    start = None if start is None else start.to(model.device)
    hidden = model.run(tokens, _measure(layers, measured, walk), range(reached.block, len(model.blocks)), start)
    # Experts that the router never chose have no input.
    for name, layer in layers.items():
        measured.inputs.setdefault(name, InputStatistics.empty(layer.shape[1]))
    return [{**measured.rows[name], **_input_row(measured.inputs[name])} for name in layers], measured.inputs, hidden


def write_statistics(
    table: Path, importance: Path, rows: list[dict[str, Any]], inputs: Mapping[str, InputStatistics]
) -> None:
    """Write the table, and the importance matrix: mean x^2 per input column of each layer, float32 (in,), by layer name.

    Raises `UserError` and writes nothing if the inputs of a layer are not finite.
    """
    named = {row["layer"] for row in rows}
    for name, seen in inputs.items():
        if not all(values.isfinite().all() for values in (seen.mean_abs, seen.mean_square, seen.absmax)):
            raise user_error(
                "STATS-NOT-FINITE", name, "has inputs whose statistics are not finite", "Use --dtype bf16 or fp32"
            )
    write_table(table, rows, COLUMNS)
    write_importance(importance, {name: seen.mean_square for name, seen in inputs.items() if name in named})


def read_alphas(table: Path, fit: str) -> dict[str, float]:
    """Return {layer: alpha} from a table; an empty cell is NaN. Raises `UserError` for an invalid number or a missing column."""
    column = f"alpha_{fit}"
    return {
        row["layer"]: _number(table, row["layer"], column, row[column]) for row in read_table(table, ("layer", column))
    }


def _number(table: Path, layer: str, column: str, cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        what = f"has {cell!r} as {column} of {layer}, expected a number"
        raise user_error("STATS-BAD-CELL", table, what, "Create it again with scripts/layer_stats.py") from None
