"""What every command shares: typed flags, logging to stderr, errors as one line each and an exit code."""

import argparse
import errno
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bitplan.cli.bundled_text import TextFlag, fill_texts_
from bitplan.cli.help import HelpFormatter, help_text, split_description
from bitplan.cli.inputs import check_files, input_file, output_file, outputs_of
from bitplan.config.flag_types import ALL_CORES, count, number, or_word
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import (
    CalibrationWindows,
    ComputeSettings,
    ExportSettings,
    ModelSettings,
    Settings,
    WindowSettings,
)
from bitplan.core.errors import Problem, UserError, nearest
from bitplan.core.provenance import record_warnings_

MOST_LINES = 3
QWEN = "Qwen/Qwen2.5-7B-Instruct"
# Set before torch is imported, and only where the user has not. MKL's results may otherwise differ in the last digits from run
# to run, with the place in memory at which a buffer happens to lie: the same command is to write the same bytes.
ENVIRONMENT = {"MKL_CBWR": "AUTO,STRICT", "HF_HUB_DISABLE_TELEMETRY": "1"}


class _OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong with a flag in one line, as every other error; `--help` has the usage."""

    def __init__(self, **how: object) -> None:
        super().__init__(**how)
        self.texts: list[TextFlag] = []
        # Other spellings of flags, from the documents: accepted, and not shown.
        self.aliases: dict[str, str] = {}
        self.words: list[str] = []
        # Whole commands, shown at the end of the help.
        self.examples: list[str] = []

    def format_help(self) -> str:
        """Return the help: flags in groups, examples at the end."""
        return help_text(self, self.examples)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse flags in either spelling, --max_tokens and --max-tokens: documents and habits differ; help shows the dashes."""
        self.words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([self._declared(word) for word in self.words], namespace)

    def _declared(self, word: str) -> str:
        """Return a flag as it was declared; any other word as it is."""
        flag, equals, value = word.partition("=")
        dashed = f"--{flag[2:].replace('_', '-')}"
        known = self.aliases.get(dashed, dashed)
        return f"{known}{equals}{value}" if word.startswith("--") and known in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        """Print one line that tells a misspelt flag first, and exit with 2."""
        known = self._option_string_actions
        # A misspelt flag is told before the one that is missing because of it.
        unknown = [
            word for word in self.words if word.startswith("--") and self._declared(word).split("=")[0] not in known
        ]
        if unknown:
            close = nearest(unknown[0], known, 1)
            message = f"unrecognized arguments: {' '.join(unknown)}{'. ' + close.rstrip('?') if close else ''}"
        code = "FLAGS-UNKNOWN" if unknown else "FLAGS-INVALID"
        end = "" if message.endswith("?") else "."
        print(f"error [{code}] {message}{end} {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(2)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows defaults, refuses abbreviated flags and knows `--verbose`. Examples stand below `For example:` in the
    description."""
    words, examples = split_description(description)
    made = _OneLineParser(description=words, formatter_class=HelpFormatter, allow_abbrev=False)
    made.examples = examples
    made.add_argument("--verbose", action="store_true", help="log details")
    return made


def add_compute_flags(made: argparse.ArgumentParser, dtype: str = "fp32", device: str = "cpu") -> None:
    """Add --device, --dtype and --threads: the settings of `compute`, and what a command takes besides."""
    dtypes = ("fp32", "fp16", "bf16", "auto")
    told = "number type to compute in; auto: bf16 where the processor computes in it, else fp32"
    how = {"device": {"default": device}, "dtype": {"default": dtype, "choices": dtypes, "help": told}}
    threads = {"default": ALL_CORES, "help": "processor threads"}
    add_settings_flags(made, ComputeSettings, **how, threads=threads)


def add_threads_flag(made: argparse.ArgumentParser) -> None:
    """Add --threads, by default all that the machine has."""
    made.add_argument("--threads", type=count, default=ALL_CORES, help="processor threads")


def add_window_flags(
    made: argparse.ArgumentParser, model: type[WindowSettings] = WindowSettings, sequences: int | None = None
) -> None:
    """Add --length, --sequences and --bos: how a text is cut into windows of tokens, by default as in the workflow."""
    own = {"default": sequences} if sequences else {}
    add_settings_flags(made, model, sequences={"help": "windows to use, or all of the text", **own})
    add_bos_flag(made)


def add_calibration_window_flags(made: argparse.ArgumentParser) -> None:
    """Add --length, --sequences and --bos for a text that is measured on."""
    add_window_flags(made, CalibrationWindows)


def add_bos_flag(made: argparse.ArgumentParser) -> None:
    """Add --bos."""
    add_settings_flags(made, Settings, only=("bos",))


def add_text_flag(
    made: argparse.ArgumentParser,
    flag: str,
    bundled: str,
    told: str,
    kind: Callable[[str], object] = input_file,
    wanted: Callable[[argparse.Namespace], bool] = lambda args: True,
) -> None:
    """Add a flag for a text: required where it is `wanted`, but for the bundled model, whose own text is the default."""
    made.add_argument(flag, type=kind, help=f"{told}; only the bundled model has one by default")
    made.texts.append(TextFlag(flag, bundled, wanted))


def add_imatrix_flag(made: argparse.ArgumentParser) -> None:
    """Add --imatrix."""
    told = "importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    made.add_argument("--imatrix", type=input_file, help=told)


def add_export_flags(made: argparse.ArgumentParser, plan: bool = True) -> None:
    """Add the flags of commands that export a plan, but for what they start from and what they write; without --plan if `plan` says so."""
    add_model_flag(made)
    if plan:
        plans = "config.json, plan.json or mixed_precision_config.pt"
        made.add_argument("--plan", type=input_file, required=True, help=plans)
    add_settings_flags(made, ExportSettings)
    add_imatrix_flag(made)
    made.add_argument("--model-name", help="name of the model in the file; the folder's by default")
    made.add_argument("--plan-name", help="name of the plan in the file; by default that of its file or folder")
    made.add_argument("--scores", type=input_file, help="the plan's perplexity.json, for the KL in the file")
    made.add_argument("--card", type=output_file, help="README.md to write: a model card, with the KL of --scores")
    made.add_argument("--calibration", type=input_file, help="the calibration text, for its SHA-256 in the file")
    add_base_kl_flag(made)
    add_threads_flag(made)


def add_model_flag(made: argparse.ArgumentParser, required: bool = True, default: Path | None = None) -> None:
    """Add --model and --revision."""
    told = "folder of a checkpoint, the model.json of one, or an id on the model hub (organization/name)"
    made.add_argument("--model", type=Path, required=required, default=default, help=told)
    made.add_argument("--revision", help="branch, tag or commit on the model hub; its main branch by default")


def add_base_kl_flag(made: argparse.ArgumentParser) -> None:
    """Add --allow-base-kl; without a number it allows any."""
    told = "largest KL of the model's own GGUF file from the model, nats per token; without a number: any"
    how = {"nargs": "?", "const": float("inf"), "type": or_word(number(0.0), {"inf": float("inf")}), "help": told}
    add_settings_flags(made, ModelSettings, only=("allow_base_kl",), allow_base_kl=how)


def add_model_id_flag(made: argparse.ArgumentParser) -> None:
    """Add --model with a default, which the documents call --model_id, and --revision."""
    add_model_flag(made, default=Path(QWEN), required=False)
    made.aliases["--model-id"] = "--model"


def _configure_logging(verbose: bool, quiet: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    record_warnings_()
    for noisy in ("transformers", "httpx", "httpx2", "httpcore2", "filelock", "urllib3", "matplotlib", "gguf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noisier in ("lm_eval", "evaluate", "datasets"):
        logging.getLogger(noisier).setLevel(logging.DEBUG if verbose else logging.ERROR)
    if not sys.stderr.isatty():
        # The bars of libraries would fill a log; what takes long here says so in lines of its own.
        os.environ.setdefault("TQDM_DISABLE", "1")


def fetched(model: Path, revision: str | None = None) -> Path:
    """Return a model's folder: the path itself where it exists, or what is fetched from the hub by its id. Raises `UserError`."""
    if os.path.exists(model) and revision is None:
        return model
    from bitplan.models.hub.cache import located

    return located(model, revision)


def _fetch_model(args: argparse.Namespace) -> None:
    """Put the folder of a model of the hub in the place of its id. Raises `UserError`."""
    if isinstance(getattr(args, "model", None), Path):
        args.model = fetched(args.model, getattr(args, "revision", None))


def _tell(problems: Sequence[Problem]) -> None:
    """Print at most three lines, one for each problem; the last one counts what is left."""
    shown = problems if len(problems) <= MOST_LINES else problems[: MOST_LINES - 1]
    for problem in shown:
        print(f"error {problem}", file=sys.stderr)
    if len(shown) < len(problems):
        print(f"error: {len(problems) - len(shown)} more problems", file=sys.stderr)


# What the machine lacks, by the number of the system's error: code, what, hint.
MEMORY = ("SYSTEM-NO-MEMORY", "memory is used up", "Use fewer --sequences, a smaller --dtype or a larger machine")
DENIED = ("SYSTEM-NO-PERMISSION", "permission is denied", "Choose a place that you may read and write")
SHORTAGES: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("SYSTEM-DISK-FULL", "the disk is full", "Free some space or write to another disk"),
    errno.EDQUOT: ("SYSTEM-DISK-FULL", "the disk quota is used up", "Free some space or write to another place"),
    errno.EROFS: ("SYSTEM-READ-ONLY", "the file system is read-only", "Write to another place"),
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ENOMEM: MEMORY,
}
# Rust libraries (safetensors, tokenizers) put the number into their text; torch's CPU allocator has no error type of its own.
RUST_ERROR = re.compile(r"\(os error (\d+)\)")
TORCH_ALLOCATOR = "DefaultCPUAllocator"


def _error_number(error: Exception) -> int | None:
    """Return the number of the system's error behind an exception, None when there is none."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or TORCH_ALLOCATOR in str(error):
        return errno.ENOMEM
    told = RUST_ERROR.search(str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _of_the_system(error: Exception, outputs: Sequence[Path]) -> Problem | None:
    """Return an error of the machine (disk full, no right to write, no memory) as a problem; None for any other error.

    What is written aside has a name that means nothing to the user: the problem names the outputs.
    """
    shortage = SHORTAGES.get(_error_number(error))
    if shortage is None:
        return None
    code, what, hint = shortage
    of_files = isinstance(error, OSError) or RUST_ERROR.search(str(error))
    written = " or ".join(map(str, outputs)) if of_files else ""
    return Problem(code, written or getattr(error, "filename", None) or type(error).__name__, what, hint)


def run(made: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parse the flags, run `main` and exit: 0 done, 1 interrupted, 2 something the user has to change."""
    args = made.parse_args()
    _configure_logging(args.verbose, getattr(args, "quiet", False))
    os.environ.update({**ENVIRONMENT, **os.environ})
    try:
        check_files(made, args)
        fill_texts_(made.texts, args)
        _fetch_model(args)
        main(args)
    except UserError as error:
        _tell(error.problems)
        sys.exit(2)
    except Exception as error:
        problem = _of_the_system(error, outputs_of(made, args))
        if problem is None:
            raise
        _tell((problem,))
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; run the same command again: steps that save their progress resume from there", file=sys.stderr
        )
        sys.exit(1)
    finally:
        # At its end Python looks three times for garbage among all that was loaded: a second for transformers, which is a quarter of a small step.
        gc.freeze()
