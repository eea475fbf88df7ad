"""Check that a server serves a plan: its log-probabilities of a text, over the OpenAI API, beside those of the plan.

A key for the server is taken from the environment, OPENAI_API_KEY.

For example:

    python scripts/check_served_model.py --url http://127.0.0.1:8000/v1 --model demo/model --plan plan.json --text demo/evaluation.txt
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    add_window_flags,
    parser,
    run,
)
from bitplan.config.flag_types import number

# The answers of common servers: vLLM returns at most 20 by default (--max-logprobs).
TOP, TOLERANCE, WINDOWS, SECONDS = 20, 0.02, 4, 120.0
FEWEST, MOST = 1, 1000


def main(args) -> None:
    """Print and write how far a server is from the plan; exit code 2 beyond the tolerance. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.plans.plan import check_columns, uniform_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.opening import prepare_model
    from bitplan.runtimes.served.check import Check, check_served, print_served, refuse_different
    from bitplan.runtimes.served.server import open_server, served_name
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    server = open_server(args.url, args.timeout)
    name = served_name(server, args.served_model)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    plan = read_any_plan(args.plan, model.info) if args.plan else uniform_plan(model.info, "bf16")
    check_columns(plan, model.info)
    importance = read_importance(args.imatrix, model.info.quantizable)
    check = Check(args.text, args.length, args.sequences, args.top, args.tolerance, args.mode)
    report = check_served(server, name, model, plan, importance, check)
    if args.output:
        write_json(args.output, report)
        write_provenance(args.output, started)
    print_served(report)
    refuse_different(report)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--plan", type=input_file, help="config.json or plan.json that is served; the model itself by default"
    )
    flags.add_argument("--url", default="http://127.0.0.1:8000/v1", help="base address of the server")
    flags.add_argument("--served-model", help="the model's name on the server; by default the only one that it lists")
    flags.add_argument(
        "--mode",
        choices=("auto", "prompt_logprobs", "echo", "echo_of_text", "next_token", "next_token_of_text"),
        default="auto",
        help="how log-probabilities are asked for; auto: the first that the server answers",
    )
    told = "log-probabilities at each position"
    flags.add_argument("--top", type=number(FEWEST, MOST, kind=int), default=TOP, help=told)
    told = "largest mean |difference| of the log-probabilities of the text's own tokens, in nats"
    flags.add_argument("--tolerance", type=number(0.0), default=TOLERANCE, help=told)
    flags.add_argument(
        "--timeout", type=number(0.0, open_low=True), default=SECONDS, help="seconds to wait for an answer"
    )
    add_text_flag(flags, "--text", "evaluation.txt", "text, or one saved by teacher.py")
    add_window_flags(flags, sequences=WINDOWS)
    add_compute_flags(flags)
    add_imatrix_flag(flags)
    flags.add_argument("--output", type=output_file, help="JSON file to write, with all figures and the verdict")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
