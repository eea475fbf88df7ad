"""Apply a configuration to a model: print the formats of every layer, and write a checkpoint with the quantized values.

For example:

    python scripts/quantize_model.py --model demo/model --layer-config config.json --output checkpoint
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, new_folder, output_file
from bitplan.cli.parser import add_imatrix_flag, add_model_flag, add_threads_flag, parser, run


def main(args) -> None:
    """Print the formats of every layer, and write the checkpoint. Raises `UserError`."""
    import torch

    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.bits import bits_report, print_report
    from bitplan.plans.plan import LayerPlan, check_columns, check_plan_importance, write_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.transformers.checkpoint import write_checkpoint
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    torch.set_num_threads(args.threads)
    info = model_info(args.model)
    plan = read_any_plan(args.layer_config, info)
    check_columns(plan, info)
    print_report(*bits_report(plan, info, None, None))
    if args.dry_run:
        return
    if args.output:
        weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix, info.quantizable))
        check_plan_importance(plan, info, weights.importance)
        done = write_checkpoint(args.output, open_described_checkpoint(args.model, info), info, plan, weights)
        # In a folder of its own: smoothing factors beside the weights would be read as weights.
        write_plan(args.output / "bitplan" / "plan.json", plan, LayerPlan(), info)
        write_provenance(args.output, started)
        print(f"\n{args.output}: {done['changed']} weights changed, {done['bytes']:,} bytes")
        if any(made.aq != "bf16" for made in plan.layers.values()):
            print("a checkpoint holds no activation formats: evaluate the plan itself for those")
    if args.save_plan:
        write_plan(args.save_plan, plan, LayerPlan(), info)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--layer-config", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    flags.add_argument("--save-plan", type=output_file, help="plan.json to write: one record for every layer")
    flags.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    flags.add_argument("--output", type=new_folder, help="folder for the checkpoint; nothing is written without")
    add_imatrix_flag(flags)
    add_threads_flag(flags)
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
