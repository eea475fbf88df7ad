"""Perplexity of a model, of a plan, or of a GGUF file, and its KL divergence from the full-precision model."""

import time

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_base_kl_flag,
    add_compute_flags,
    add_model_flag,
    add_text_flag,
    add_window_flags,
    parser,
    run,
)


def main(args) -> None:
    from bitplan.core.files import check_gguf, write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.scores import summarize
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import check_columns, uniform_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.runtimes.gguf.base_check import refuse_other_model
    from bitplan.runtimes.gguf.scores import score_gguf
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    plan = read_any_plan(args.plan, model.info) if args.plan else uniform_plan(model.info, "bf16")
    weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix, model.info.quantizable))
    check_columns(plan, model.info)
    if args.gguf:
        check_gguf(args.gguf)
    reference = open_reference(args.text, model, args.length, args.sequences)
    if args.gguf:
        scores = score_gguf(args.gguf, reference, args.threads)
    else:
        scores = score_plan(model.model, model.info, plan, reference, weights)
    kind = "gguf" if args.gguf else "plan" if args.plan else "model"
    result = {
        "scored": kind,
        "length": reference.tokens.shape[1],
        "dtype": model.dtype,
        **summarize(scores),
    }
    if args.gguf:
        refuse_other_model(args.gguf, result["kl_mean"], args.allow_base_kl, model.checkpoint.config)
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
    add_base_kl_flag(flags)
    scored = flags.add_mutually_exclusive_group()
    scored.add_argument("--plan", type=input_file, help="config.json or plan.json to apply")
    scored.add_argument("--gguf", type=input_file, help="GGUF file to score in llama.cpp")
    add_text_flag(flags, "--text", "evaluation.txt", "text, or one saved by teacher.py")
    flags.add_argument(
        "--imatrix", type=input_file, help="importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    )
    flags.add_argument("--output", type=output_file, required=True, help="perplexity.json to write")
    run(flags, main)
