"""Compress a model with SparseGPT: prune its layers, and give each of their input channels its own width.

For example:

    python scripts/sparsegpt_enhanced.py demo/model demo/calibration.txt --seqlen 512 --nsamples 16 --sparsity 0.5 --target-avg-bits 4 --save compressed
"""

import logging
import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, new_folder, output_file
from bitplan.cli.parser import add_bos_flag, add_compute_flags, parser, run
from bitplan.config.flag_types import count, number
from bitplan.config.flags import add_settings_flags
from bitplan.search.sparsegpt.settings import SparseGPTPlan

# True: log the scores and widths of every layer, as --debug does.
DEBUG = False
LOGGER = "bitplan.search.sparsegpt"
EXPORTED = ("SparseGPT", "QuantizationStats", "Quantizer")


def __getattr__(name: str):
    """Return what the library's document imports from this file; loaded when asked for, so that --help stays fast."""
    if name not in EXPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bitplan.rounding.channel_grid import Quantizer
    from bitplan.search.sparsegpt.layer import SparseGPT
    from bitplan.search.sparsegpt.report import QuantizationStats

    if DEBUG:
        logging.basicConfig(format="%(message)s")
        logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    return {"SparseGPT": SparseGPT, "QuantizationStats": QuantizationStats, "Quantizer": Quantizer}[name]


def settings_of(args):
    """Return the settings that the flags say."""
    from bitplan.rounding.sweep import Pruning
    from bitplan.search.sparsegpt.layer import ChannelSettings
    from bitplan.search.sparsegpt.model_settings import ModelSettings

    targets = tuple(args.target_avg_bits or ())
    quantiles = None if args.quantiles is None else tuple(args.quantiles)
    return ModelSettings(
        pruning=Pruning(args.sparsity, args.prunen, args.prunem),
        targets=() if targets == (16.0,) else targets,
        layer_bits=tuple(args.layer_bits),
        method=args.bit_allocation_method,
        channels=ChannelSettings(tuple(args.bit_options), quantiles, dict(args.weights)),
        symmetric=args.sym,
        cut_ranges=args.mse,
        group_size=args.group_size,
        blocksize=args.blocksize,
        percdamp=args.percdamp,
        compensate=args.compensate,
        quantize=targets != (16.0,),
    )


def main(args) -> None:
    """Write the plan with its compressed weights, and the statistics of its layers. Raises `UserError`."""
    from bitplan.reference.datasets import calibration_windows
    from bitplan.reference.opening import prepare_model
    from bitplan.search.sparsegpt.run import compressed_plan, held_out_range, print_scores, write_results

    if args.debug or DEBUG:
        logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    started = time.monotonic()
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    settings = settings_of(args)
    settings.check(model.info)
    skip = held_out_range(model, args.dataset, args.evaluation)
    tokens = calibration_windows(model, args.dataset, args.seqlen, args.nsamples, args.seed)
    with compressed_plan(model, tokens, settings, args.output_config, args.output_plan, args.save) as (made, plan):
        write_results(model, made, plan, args, started)
        made.stats.print_summary() if made.stats.layers else None
        print_scores(model, plan, args.evaluation, args.seqlen, skip)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("model", type=Path, help="folder of a checkpoint, a model.json, or an id on the model hub")
    flags.add_argument("dataset", help="calibration text, one saved by layer_stats.py, or c4, wikitext2 or ptb")
    flags.add_argument("--revision", help="branch, tag or commit on the model hub; its main branch by default")
    add_compute_flags(flags)
    add_bos_flag(flags)
    flags.add_argument("--nsamples", type=count, default=128, help="calibration windows")
    flags.add_argument("--seqlen", type=number(2, kind=int), default=2048, help="tokens per window")
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="which windows are drawn")
    # The document's command gives widths by plain quantiles unless it is told an average.
    told = "mean width of a layer's channels, without scales; several: for equal parts of the blocks; 16: prune only; plain quantiles when absent"
    add_settings_flags(flags, SparseGPTPlan, target_avg_bits={"default": None, "help": told})
    flags.add_argument("--evaluation", type=input_file, help="text on which the compressed model is scored at the end")
    flags.add_argument("--debug", action="store_true", help="log scores and widths of every layer")
    flags.add_argument("--save", type=new_folder, help="folder for the compressed checkpoint, which transformers loads")
    flags.add_argument("--output-config", type=output_file, help="config.json to write, beside the folder compressed/")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write, beside the folder compressed/")
    flags.add_argument("--output-stats", type=output_file, help="TSV of the layers to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
