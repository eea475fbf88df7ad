"""Perplexity of a model, of a plan, or of a GGUF file, and its KL divergence from the full-precision model."""

import time
from pathlib import Path

from bitplan.command import add_compute_flags, add_model_flag, add_window_flags, parser, run


def main(args) -> None:
    from bitplan.evaluate.gguf import score_gguf
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.scores import summarize
    from bitplan.evaluate.text import BOS_POLICY
    from bitplan.files import write_json
    from bitplan.opening import opened, teacher_on
    from bitplan.plan import read_plan, uniform
    from bitplan.provenance import write_provenance
    from bitplan.quantized_walk import QuantizedWeights
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    model = opened(args.model, args.dtype, args.device, args.threads)
    plan = read_plan(args.plan, model.info) if args.plan else uniform(model.info, "bf16")
    teacher = teacher_on(args.text, model, args.length, args.sequences, "evaluation.txt")
    if args.gguf:
        scores = score_gguf(args.gguf, teacher, args.threads)
    else:
        weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix))
        scores = score_plan(model.model, model.info, plan, teacher, weights)
    kind = "gguf" if args.gguf else "plan" if args.plan else "model"
    result = {
        "scored": kind,
        "length": teacher.tokens.shape[1],
        "bos": BOS_POLICY,
        "dtype": args.dtype,
        **summarize(scores),
    }
    write_json(args.output, result)
    write_provenance(args.output, started)
    error = "" if result["ppl_error"] is None else f" +- {result['ppl_error']:.4f}"
    print(
        f"perplexity {result['ppl']:.4f}{error} (full precision {result['base_ppl']:.4f}) on {result['tokens']} tokens"
    )
    print(f"KL {result['kl_mean']:.6f} nats per token, top-1 agreement {100 * result['top1_agreement']:.2f} %")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    scored = flags.add_mutually_exclusive_group()
    scored.add_argument("--plan", type=Path, help="config.json or plan.json to apply")
    scored.add_argument("--gguf", type=Path, help="GGUF file to score in llama.cpp")
    flags.add_argument("--text", type=Path, help="text, or one saved by teacher.py; the bundled one by default")
    flags.add_argument(
        "--imatrix", type=Path, help="importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    )
    flags.add_argument("--output", type=Path, required=True, help="perplexity.json to write")
    run(flags, main)
