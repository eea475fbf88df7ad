"""What scripts/sensitivity.py and scripts/merge_sensitivity.py do, once their flags are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import write_json, write_table
from bitplan.core.resume import PartialResults
from bitplan.plans.smoothing import Smoothing, smoothing_path, write_smoothing
from bitplan.reference.opening import PreparedModel
from bitplan.sensitivity.agreement import agreement, agreement_lines, read_rows
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import COLUMNS, SensitivitySettings
from bitplan.sensitivity.local_run import GAUSSIAN, calibration_tokens, measured
from bitplan.sensitivity.measure import measure_table, read_known_alphas
from bitplan.statistics.importance import read_importance


@dataclass(frozen=True)
class Made:
    """The rows that were written, and what they cost: block-forwards over all tokens, and the same times the tokens."""

    rows: Sequence[Mapping[str, Any]]
    block_forwards: float
    tokens: int


def check_flags(measure: MeasureSettings, calibration: str | Path) -> None:
    """Raise `UserError` for flags that do not go together."""
    if calibration == GAUSSIAN and not measure.plain:
        what = "measure on a text, and Gaussian inputs are none"
        raise user_error("--anchors, --metric gradient, --fisher and --shard", what, "Leave out --random, or these")


def make_table(
    model: PreparedModel,
    calibration: str | Path,
    length: int,
    sequences: int | None,
    settings: SensitivitySettings,
    measure: MeasureSettings,
    layer_stats: Path | None,
    output: Path,
    imatrix: Path | None = None,
) -> Made:
    """Make the sensitivity table and write it, with the smoothing factors beside it; return what was made. Raises `UserError`."""
    importance = read_importance(imatrix, model.info.quantizable)
    alphas = read_known_alphas(layer_stats, model.info)
    if measure.plain:
        rows, smoothing = measured(model, calibration, length, sequences, settings, importance, output)
        rows = [{**row, "alpha": (alphas or {}).get(row["layer"])} for row in rows]
        write_sensitivity(output, rows, smoothing)
        PartialResults.folder_of(output).remove()
        return Made(rows, model.model.block_forwards, model.model.tokens_forwarded)
    tokens = calibration_tokens(model, calibration, length, sequences)
    made = measure_table(model, tokens, settings, measure, output, alphas, importance)
    write_sensitivity(output, made.rows, made.smoothing)
    PartialResults.folder_of(output).remove()
    return Made(made.rows, made.block_forwards, round(made.block_forwards * tokens.numel()))


def write_sensitivity(path: Path, rows: Sequence[Mapping[str, Any]], smoothing: Smoothing | None) -> None:
    """Write the table, and the smoothing factors beside it."""
    write_table(path, rows, COLUMNS)
    write_smoothing(smoothing_path(path), smoothing or Smoothing(()))


def tell_agreement(table: Path, report: Path | None) -> None:
    """Print which figures of a table agree with measured KL, and write it to `report`, if any: nothing where none is measured."""
    taus = agreement(read_rows(table))
    print("".join(f"{line}\n" for line in agreement_lines(taus)), end="")
    if report:
        write_json(report, {"kendall_tau": taus})
