"""Measured sensitivity against measuring each layer by itself with a full forward: figures, block-forwards and wall time.

    python benchmarks/measure.py [--model demo/model] [--anchors all] [--sequences 16] [--threads 1]

Both run in this process on the same text, in turn: a pass of the streamed measurement as scripts/sensitivity.py runs it (its table of
layer errors included), then, for every row that it measured, a walk of the whole model with that one layer quantized, scored as
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


class OneByOne:
    """Measures a layer by a full forward of the model under a plan for it alone."""

    def __init__(self, model, tokens) -> None:
        from bitplan.plans.apply import QuantizedWeights
        from bitplan.reference.reference import reference_of_tokens

        self.model, self.weights = model, QuantizedWeights()
        self.reference = reference_of_tokens(model.checkpoint, tokens, model.model.run(tokens), model.dtype)

    def kld(self, row) -> float:
        """Return the mean KL of a row's layer in its format."""
        from bitplan.evaluate.perplexity import score_plan
        from bitplan.plans.plan import LayerPlan, Plan

        plan = Plan({row["layer"]: LayerPlan(row["format"])})
        return (
            score_plan(self.model.model, self.model.info, plan, self.reference, self.weights).kl.double().mean().item()
        )


def timed(function, *arguments) -> tuple:
    """Return what a function gives, and its seconds."""
    started = time.perf_counter()
    made = function(*arguments)
    return made, time.perf_counter() - started


def compared(model, tokens, settings, measure, folder: Path) -> dict[str, float]:
    """Return the figures of both."""
    from bitplan.core.resume import PartialResults
    from bitplan.sensitivity.passes import Measurement, planned

    plan = planned(model.model, model.info, tokens, settings, measure)
    streamed = Measurement(model.model, model.info, tokens, settings, measure, PartialResults(folder))
    forwards, seconds = timed(streamed.base)
    before = model.model.tokens_forwarded
    plain, plain_seconds = timed(OneByOne, model, tokens)
    plain_forwards, worst, count = (model.model.tokens_forwarded - before) / tokens.numel(), 0.0, 0
    for each in plan:
        result, took = timed(streamed.result_of, each)
        forwards, seconds = forwards + result["block_forwards"], seconds + took
        before = model.model.tokens_forwarded
        for row in (cell["row"] for cell in result["rows"] if cell["row"]["by_window"]):
            wanted, took = timed(plain.kld, row)
            worst = max(worst, abs(sum(row["by_window"]) / len(row["by_window"]) / wanted - 1))
            count, plain_seconds = count + 1, plain_seconds + took
        plain_forwards += (model.model.tokens_forwarded - before) / tokens.numel()
        print(f"pass {each.number + 1} of {len(plan)}: {seconds / plain_seconds:.3f} of the time", file=sys.stderr)
    return {
        "candidates": count,
        "worst_relative_difference": worst,
        "block_forwards": forwards,
        "block_forwards_one_by_one": plain_forwards,
        "block_forwards_ratio": forwards / plain_forwards,
        "seconds": seconds,
        "seconds_one_by_one": plain_seconds,
        "seconds_ratio": seconds / plain_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--text", type=Path, default=ROOT / "demo" / "calibration.txt")
    parser.add_argument("--palette", nargs="+", default=PALETTE)
    parser.add_argument("--anchors", choices=("1", "2", "all"), default="all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    from bitplan.reference.opening import prepare_model
    from bitplan.reference.text import windows
    from bitplan.sensitivity.candidates import MeasureSettings
    from bitplan.sensitivity.local_errors import Choice, SensitivitySettings

    model = prepare_model(args.model, "fp32", "cpu", args.threads)
    tokens = windows(args.model, args.text, args.length, args.sequences)
    settings = SensitivitySettings(tuple(map(Choice, args.palette)))
    with tempfile.TemporaryDirectory() as folder:
        figures = compared(model, tokens, settings, MeasureSettings(args.anchors), Path(folder))
    print("\n".join(f"{name:<30} {value:12.5g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
