"""Mean KL, perplexity and bits of a model with every layer in one format, format by format.

For example:

    python scripts/compare_formats.py --model demo/model --formats mxfp4 q4_k q6_k
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import (
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    add_window_flags,
    parser,
    run,
)

SIZES, OVER = ("avg_bits_layers", "avg_bits"), "kl_over_previous"


def main(args) -> None:
    """Print and write the figures of each format. Raises `UserError`."""
    from bitplan.core.files import write_table
    from bitplan.core.provenance import write_provenance
    from bitplan.core.tables import cell, markdown_head, markdown_row
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.scores import summarize
    from bitplan.formats.importance import check_importance
    from bitplan.formats.table import get_format
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.plans.plan import average_bits, uniform_plan
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.report.metrics import SCORES
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    for name in args.formats:
        get_format(name)
    check_importance(args.formats, args.imatrix is not None)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    warn_of_formats(args.formats, model.info)
    reference = open_reference(args.text, model, args.length, args.sequences)
    importance = read_importance(args.imatrix, model.info.quantizable)
    rows: list[dict] = []
    columns = ("format", *SIZES, *(metric.key for metric in SCORES), OVER)
    print(markdown_head(columns))
    for name in args.formats:
        plan = uniform_plan(model.info, name)
        weights = QuantizedWeights(limit=0, importance=importance)
        scores = summarize(score_plan(model.model, model.info, plan, reference, weights))
        bits = average_bits(plan, model.info)
        over = scores["kl_mean"] / rows[-1]["kl"] if rows and rows[-1]["kl"] > 0 else None
        figures = (name, bits.avg_bits_layers, bits.avg_bits, *(scores[metric.source] for metric in SCORES), over)
        rows.append(dict(zip(columns, figures, strict=True)))
        print(markdown_row(cell(value, "{:.4g}", missing="") for value in figures))
    if args.output:
        write_table(args.output, rows, columns)
        write_provenance(args.output, started)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    default = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"]
    flags.add_argument("--formats", nargs="+", default=default, help="formats by name, from gentle to hard")
    add_text_flag(flags, "--text", "evaluation.txt", "text, or one saved by teacher.py")
    add_imatrix_flag(flags)
    flags.add_argument("--output", type=output_file, help="TSV to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
