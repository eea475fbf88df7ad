"""Apply a configuration to a model: print the formats of every layer, and write a checkpoint with the quantized values."""

import time
from pathlib import Path

from bitplan.command import add_model_flag, parser, run


def main(args) -> None:
    import torch

    from bitplan.bits_report import bits_report, print_report
    from bitplan.export.checkpoint import write_checkpoint
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.layers import model_info
    from bitplan.plan import LayerPlan, read_plan, write_plan
    from bitplan.provenance import write_provenance
    from bitplan.quantized_walk import QuantizedWeights
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    if args.threads:
        torch.set_num_threads(args.threads)
    info = model_info(args.model)
    plan = read_plan(args.layer_config, info)
    print_report(*bits_report(plan, info, None, None))
    if args.dry_run:
        return
    if args.save_plan:
        write_plan(args.save_plan, plan, LayerPlan(), info, "summary")
    if args.output:
        weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix))
        done = write_checkpoint(args.output, Checkpoint.open(args.model), info, plan, weights)
        write_plan(args.output / "plan.json", plan, LayerPlan(), info, "summary")
        write_provenance(args.output, started)
        print(f"\n{args.output}: {done['changed']} weights changed, {done['bytes']:,} bytes")
        if any(made.aq != "bf16" for made in plan.layers.values()):
            print("a checkpoint holds no activation formats: evaluate the plan itself for those")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--layer-config", type=Path, required=True, help="config.json or plan.json")
    flags.add_argument("--save-plan", type=Path, help="plan.json to write: one record for every layer")
    flags.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    flags.add_argument("--output", type=Path, help="folder for the checkpoint; nothing is written without")
    flags.add_argument("--imatrix", type=Path, help="importance matrix: the safetensors beside layer_stats.tsv")
    flags.add_argument("--threads", type=int, help="processor threads; all by default")
    run(flags, main)
