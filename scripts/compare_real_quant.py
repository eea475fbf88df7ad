"""Compare GGUF files in llama.cpp: size, load time, tokens per second, memory, and what they answer."""

import os
import time

from bitplan.command import count, number, parser, run
from bitplan.flag_files import output_file


def main(args) -> None:
    from bitplan.compare.speed import PROMPTS, SpeedSettings, parse_models, print_table, rounds, summarize
    from bitplan.files import write_json
    from bitplan.flag_files import clashes, refuse
    from bitplan.progress import progress
    from bitplan.provenance import write_provenance

    started = time.monotonic()
    models = parse_models(args.models)
    refuse(clashes([args.output], models.values()))
    settings = SpeedSettings(args.max_tokens, args.repeats, args.warmup, args.threads, tuple(args.prompts or PROMPTS))
    measured = list(progress(rounds(models, settings), settings.warmup + settings.repeats, "rounds"))
    result = summarize(models, measured, settings)
    write_json(args.output, result)
    write_provenance(args.output, started)
    print_table(result)
    for name, row in result["models"].items():
        print(f"\n{name}: {settings.prompts[0]}{row['answers'][0]}")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument(
        "--models", nargs="+", required=True, metavar="NAME=FILE", help="files to compare; the first is the reference"
    )
    flags.add_argument(
        "--max_tokens", type=number(2, kind=int), default=200, help="tokens to generate after each prompt"
    )
    flags.add_argument("--repeats", type=count, default=5, help="counted rounds over all models")
    flags.add_argument("--warmup", type=number(0, kind=int), default=1, help="rounds that are not counted, first")
    flags.add_argument("--prompts", action="append", help="a prompt; may be given several times")
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument("--output", type=output_file, required=True, help="speed.json to write")
    run(flags, main)
