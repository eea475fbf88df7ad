"""Compare GGUF files in llama.cpp: size, load time, tokens per second, memory, and what they answer.

Without --models: the original checkpoint in transformers, a Q4_K_M file and a mixed-precision file, with perplexity and KL.

For example:

    python scripts/compare_real_quant.py --models q4=Q4_K_M.gguf mine=small.gguf
"""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.bundled_text import text_beside
from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import QWEN, add_text_flag, add_threads_flag, add_window_flags, fetched, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import SpeedSettings

Q4KM, MIXED = "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "models/qwen2.5-7b-mixed.gguf"
EVALUATION = "evaluation.txt"


def scores_wanted(args) -> bool:
    """Return whether perplexity and KL are asked for, which want a text."""
    return not args.models and not (args.model is None and args.skip_original)


def main(args) -> None:
    """Print and write the figures of each file. Raises `UserError`."""
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.files import write_json
    from bitplan.core.progress import progress
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.timing import PROMPTS, SpeedSettings
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.report.three_way import ORIGINAL, compared, known_original, print_three_way, scored
    from bitplan.runtimes.speed import parse_models, print_table, rounds, summarize

    started = time.monotonic()
    models = (
        parse_models(args.models)
        if args.models
        else compared(args.q4km_path or Path(Q4KM), args.mixed_path or Path(MIXED))
    )
    refuse(clashes([args.output] if args.output else [], models.values()))
    model, text, scores = args.model, args.text, {}
    # The files are looked at before anything is fetched, which may take hours.
    if model is None and not (args.models or args.skip_original):
        model = fetched(Path(QWEN))
    if not args.models and model is None:
        model = known_original(args.mixed_path or Path(MIXED))
        text = text or (text_beside(model, EVALUATION) if model else None)
    if not args.models and model is not None and text is not None:
        full = prepare_model(model, "fp32", "cpu", args.threads, args.bos)
        if not args.skip_original:
            models = {ORIGINAL: full.checkpoint.folder, **models}
        reference = open_reference(text, full, args.length, args.sequences)
        scores = scored(models, reference, args.threads)
    prompts = tuple(args.prompts or PROMPTS)
    limits = (args.max_repeats, args.max_spread, args.max_seconds)
    settings = SpeedSettings(args.max_tokens, args.repeats, args.warmup, args.threads, prompts, *limits)
    measured = list(progress(rounds(models, settings), settings.warmup + settings.budget, "rounds"))
    result = {**summarize(models, measured, settings), **({"scores": scores} if scores else {})}
    if args.output:
        write_json(args.output, result)
        write_provenance(args.output, started)
    (print_table if args.models else print_three_way)(result)
    for name, row in result["models"].items():
        print(f"\n{name}: {settings.prompts[0]}{row['answers'][0]}")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--models", nargs="+", metavar="NAME=FILE", help="files to compare; the first is the reference")
    flags.add_argument(
        "--model-id",
        dest="model",
        type=Path,
        help=f"the original: folder of a checkpoint, or an id on the model hub; {QWEN} unless it is skipped",
    )
    flags.add_argument(
        "--skip-original",
        action="store_true",
        help="do not time the original, which needs most memory; files are still scored where it is known",
    )
    flags.add_argument("--q4km-path", type=input_file, help=f"the Q4_K_M file; {Q4KM} by default")
    flags.add_argument("--mixed-path", type=input_file, help=f"the mixed-precision file; {MIXED} by default")
    add_text_flag(flags, "--text", EVALUATION, "text for perplexity and KL", wanted=scores_wanted)
    add_window_flags(flags)
    add_settings_flags(
        flags,
        SpeedSettings,
        max_tokens={"default": 200},
        repeats={"default": 5},
        prompts={"action": "append", "nargs": None, "help": "a prompt; may be given several times"},
    )
    add_threads_flag(flags)
    flags.add_argument("--output", type=output_file, help="speed.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
