"""KL of a model with all layers in one GGUF type: each type exported with an importance matrix and scored in llama.cpp.

    python benchmarks/one_type.py [--formats q2_k iq2_s ...] [--model DIR] [--calibration T --evaluation T] [--rounding nearest feedback]

Prints for each format and rounding the bits of the layers, the bytes of the file, and the KL in nats per token with its standard error.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

FORMATS = (
    *("iq1_s", "iq1_m", "tq1_0", "tq2_0", "iq2_xxs", "iq2_xs", "iq2_s", "q2_k", "iq3_xxs", "iq3_s", "q3_k"),
    *("mxfp4", "gguf_nvfp4", "q4_k"),
)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    flags.add_argument("--calibration", type=Path, default=ROOT / "demo" / "calibration.txt")
    flags.add_argument("--evaluation", type=Path, default=ROOT / "demo" / "evaluation.txt")
    flags.add_argument("--formats", nargs="+", default=FORMATS)
    flags.add_argument("--rounding", nargs="+", choices=("nearest", "feedback", "tuned"), default=["nearest"])
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--sequences", type=int, default=32)
    flags.add_argument("--threads", type=int, default=1)
    args = flags.parse_args()

    from bitplan.evaluate.scores import summarize
    from bitplan.plans.plan import average_bits, uniform_plan
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.rounding.model import ModelRounding, round_plan
    from bitplan.runtimes.gguf.convert import convert
    from bitplan.runtimes.gguf.export import export_plan
    from bitplan.runtimes.gguf.options import GGUFOptions
    from bitplan.runtimes.gguf.scores import score_gguf
    from bitplan.statistics.layer_stats import measure_layers

    model = prepare_model(args.model, "fp32", "cpu", args.threads)
    seen, fresh = (
        open_reference(text, model, args.length, args.sequences) for text in (args.calibration, args.evaluation)
    )
    _, inputs, _ = measure_layers(model.model, model.info, seen.tokens)
    importance = {name: each.mean_square.to("cpu").float().numpy() for name, each in inputs.items()}
    options = GGUFOptions(importance=importance, threads=args.threads)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base.gguf"
        convert(model.checkpoint, base)
        for name in args.formats:
            for rounding in args.rounding:
                plan = uniform_plan(model.info, name)
                if rounding != "nearest":
                    folder = Path(place) / f"{name}-{rounding}"
                    plan = round_plan(model.model, model.info, plan, seen.tokens, ModelRounding(rounding), folder)[0]
                output = Path(place) / "one.gguf"
                report = export_plan(base, output, model.info, plan, options)
                scores = summarize(score_gguf(output, fresh, args.threads))
                bits = average_bits(plan, model.info).avg_bits_layers
                error = "" if scores["kl_mean_error"] is None else f" +- {scores['kl_mean_error']:.5f}"
                print(
                    f"{name:<12}{rounding:<10}{bits:<9.4f}{report['file_bytes']:>12,}  KL {scores['kl_mean']:.5f}{error}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
