"""Perplexity of a model, of a plan, or of a file in its runtime, and its KL divergence from the full-precision model.

For example:

    python scripts/perplexity.py --model demo/model --plan plan.json --output perplexity.json
    python scripts/perplexity.py --model demo/model --gguf small.gguf --output perplexity.json
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import any_path, input_file, output_file
from bitplan.cli.parser import (
    add_base_kl_flag,
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    add_window_flags,
    parser,
    run,
)


def main(args) -> None:
    """Write perplexity and KL. Raises `UserError`."""
    from bitplan.core.errors import user_error
    from bitplan.core.files import check_gguf, write_json
    from bitplan.core.intervals import half_width
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.scores import summarize
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import check_columns, check_plan_importance, uniform_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.runtimes.gguf.base_check import refuse_other_model
    from bitplan.runtimes.registry import runtime_named
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    runtime = runtime_named("gguf" if args.gguf else args.runtime) if args.gguf or args.artifact else None
    artifact = args.gguf or args.artifact
    if runtime is not None and not runtime.scored_here:
        absent = f": {' and '.join(runtime.absent_packages)} not installed" if runtime.score else ""
        hint = "docs/runtimes.md says what to install; --plan scores the simulated plan"
        raise user_error("RUNTIME-NO-SCORE", f"runtime {runtime.name}", f"cannot be scored here{absent}", hint)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    plan = read_any_plan(args.plan, model.info) if args.plan else uniform_plan(model.info, "bf16")
    weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix, model.info.quantizable))
    check_columns(plan, model.info)
    check_plan_importance(plan, model.info, weights.importance)
    if runtime is not None and runtime.name == "gguf":
        check_gguf(artifact)
    reference = open_reference(args.text, model, args.length, args.sequences)
    if runtime is not None:
        scores = runtime.score(artifact, reference, args.threads)
    else:
        scores = score_plan(model.model, model.info, plan, reference, weights)
    kind = runtime.name if runtime is not None else "plan" if args.plan else "model"
    result = {
        "scored": kind,
        "length": reference.tokens.shape[1],
        "dtype": model.dtype,
        "rounding": plan.rounded.rounding if plan.rounded else None,
        **summarize(scores),
    }
    if runtime is not None and runtime.name == "gguf":
        refuse_other_model(artifact, result["kl_mean"], args.allow_base_kl, model.checkpoint.config)
    write_json(args.output, result)
    write_provenance(args.output, started)
    error = "" if result["ppl_error"] is None else f" +- {half_width(result['ppl_error']):.4f} (95 %)"
    print(
        f"perplexity {result['ppl']:.4f}{error} (full precision {result['base_ppl']:.4f}) on {result['tokens']} tokens"
    )
    print(f"KL {result['kl_mean']:.6f} nats per token, top-1 agreement {100 * result['top1_agreement']:.2f} %")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    add_base_kl_flag(flags)
    scored = flags.add_mutually_exclusive_group()
    scored.add_argument("--plan", type=input_file, help="config.json or plan.json to apply")
    scored.add_argument("--gguf", type=input_file, help="GGUF file to score in llama.cpp")
    scored.add_argument("--artifact", type=any_path, help="file or folder of a runtime, to score in --runtime")
    flags.add_argument("--runtime", default="gguf", help="runtime of --artifact")
    add_text_flag(flags, "--text", "evaluation.txt", "text, or one saved by teacher.py")
    add_imatrix_flag(flags)
    flags.add_argument("--output", type=output_file, required=True, help="perplexity.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
