"""Try a configuration of the W4 + A4/A8 search, simulated: perplexity, KL and generated text against full precision.

For example:

    python scripts/test_mixed_precision.py --model demo/model --config mixed_precision_config.pt
"""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_compute_flags, add_model_id_flag, add_text_flag, add_window_flags, parser, run
from bitplan.config.flag_types import number
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import SensitivitySettings


def main(args) -> None:
    """Print perplexity, KL and generated text. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.perplexity import score_plan
    from bitplan.evaluate.scores import summarize
    from bitplan.evaluate.whole_model import open_whole_model
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import uniform_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.runtimes.transformers.simulated import answers, print_comparison

    started = time.monotonic()
    model, weights = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos), QuantizedWeights()
    plan = read_any_plan(args.config, model.info, args.activation_scope)
    reference = open_reference(args.text, model, args.length, args.sequences)
    scores = summarize(score_plan(model.model, model.info, plan, reference, weights))
    loaded, said = open_whole_model(model.model, model.info, weights), {}
    for name, each in (("full precision", uniform_plan(model.info, "bf16")), ("quantized", plan)):
        with loaded.under(each) as module:
            said[name] = answers(module, model.checkpoint.folder, args.prompts, args.max_tokens)
    if args.output:
        write_json(args.output, {**scores, "answers": said})
        write_provenance(args.output, started)
    print_comparison(scores, said)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_id_flag(flags)
    add_compute_flags(flags, device="auto")
    add_window_flags(flags)
    flags.add_argument(
        "--config",
        type=input_file,
        default=Path("mixed_precision_config.pt"),
        help="the search's configuration, or a plan",
    )
    told = "what an activation scale spans, where the configuration is a .pt, which does not say"
    add_settings_flags(flags, SensitivitySettings, ("activation_scope",), activation_scope={"help": told})
    add_text_flag(flags, "--text", "evaluation.txt", "text to score on, or one saved by teacher.py")
    flags.add_argument("--prompts", action="append", help="a prompt; may be given several times")
    flags.add_argument(
        "--max-tokens", type=number(1, kind=int), default=60, help="tokens to generate after each prompt"
    )
    flags.add_argument("--output", type=output_file, help="JSON of the scores and answers to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
