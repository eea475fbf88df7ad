"""Measured sensitivity against measuring each layer by itself with a full forward: figures, block-forwards and wall time.

    python benchmarks/measure.py [--model demo/model] [--anchors all] [--sequences 16] [--threads 1]

Both run in this process, one after the other, on the same text: the streamed measurement as scripts/sensitivity.py runs it (its table of
layer errors included), and for every row that it measured a walk of the whole model with that one layer quantized, scored as
scripts/perplexity.py scores a plan.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
PALETTE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")


def streamed(opened_model, tokens, settings, measure):
    """Return what the measurement gives, and its seconds."""
    from bitplan.measure.table import measure_table

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = measure_table(opened_model, tokens, settings, measure, Path(folder) / "sensitivity.tsv")
        return made, time.perf_counter() - started


def one_by_one(opened_model, tokens, rows, smoothing) -> tuple[dict, float, float]:
    """Return KL by (layer, format, inputs) with a full forward for each measured row, the block-forwards, and the seconds."""
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.teacher import teacher_from
    from bitplan.models.smoothing import SmoothGroup, Smoothing
    from bitplan.plan import LayerPlan, Plan
    from bitplan.progress import progress
    from bitplan.quantized_walk import QuantizedWeights

    started, before = time.perf_counter(), opened_model.model.tokens_forwarded
    teacher = teacher_from(opened_model.checkpoint, tokens, opened_model.model.run(tokens), opened_model.dtype)
    found, weights = {}, QuantizedWeights()
    measured = [row for row in rows if row["kld_from"] == "measured"]
    for row in progress(measured, len(measured), "one by one"):
        scale = smoothing.factor(row["layer"]) if row["smoothed"] else None
        own = None if scale is None else Smoothing((SmoothGroup((row["layer"],), scale),))
        made = Plan({row["layer"]: LayerPlan(row["format"], row["inputs"], row["group_size"])}, smoothing=own)
        scores = score_plan(opened_model.model, opened_model.info, made, teacher, weights)
        found[row["layer"], row["format"], row["inputs"]] = scores.kl.double().mean().item()
    forwards = (opened_model.model.tokens_forwarded - before) / tokens.numel()
    return found, forwards, time.perf_counter() - started


def main() -> None:
    import logging

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--text", type=Path, default=ROOT / "demo" / "calibration.txt")
    parser.add_argument("--palette", nargs="+", default=PALETTE)
    parser.add_argument("--anchors", choices=("1", "2", "all"), default="all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from bitplan.evaluate.text import windows
    from bitplan.measure.candidates import MeasureSettings
    from bitplan.opening import opened
    from bitplan.statistics.sensitivity import Choice, SensitivitySettings, activation_choices

    model = opened(args.model, "fp32", "cpu", args.threads)
    tokens = windows(args.model, args.text, args.length, args.sequences)
    settings = SensitivitySettings((*activation_choices("tensor"), *map(Choice, args.palette)), (0.5,))
    made, seconds = streamed(model, tokens, settings, MeasureSettings(args.anchors))
    plain, forwards, plain_seconds = one_by_one(model, tokens, made.rows, made.smoothing)
    klds = {(row["layer"], row["format"], row["inputs"]): row["kld"] for row in made.rows}
    figures = {
        "candidates": len(plain),
        "worst_relative_difference": max(abs(klds[key] - value) / value for key, value in plain.items()),
        "block_forwards": made.block_forwards,
        "block_forwards_one_by_one": forwards,
        "block_forwards_ratio": made.block_forwards / forwards,
        "seconds": seconds,
        "seconds_one_by_one": plain_seconds,
        "seconds_ratio": seconds / plain_seconds,
    }
    print("\n".join(f"{name:<30} {value:12.5g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
