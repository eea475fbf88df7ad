"""What every command shares: typed flags, logging to stderr, errors as one line each and an exit code."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bitplan.cli.bundled_text import TextFlag, fill_texts_
from bitplan.cli.inputs import check_files, input_file, outputs_of
from bitplan.config.defaults import BOS_MEANING, BOS_POLICIES, CALIBRATION_WINDOWS, EVALUATION_WINDOWS, WINDOW_LENGTH
from bitplan.core.errors import Problem, UserError, nearest
from bitplan.core.sizes import parse_size

MOST = 2**31 - 1  # what torch and llama.cpp take as a count or a seed


def number(
    low: float, high: float = float("inf"), *, kind: type = float, open_low: bool = False
) -> Callable[[str], float]:
    """Return an argparse type that accepts numbers from `low` to `high` (`low` itself not, when `open_low`), none infinite."""
    end = "" if high == float("inf") else f" to {high:g}"
    high = min(high, MOST if kind is int else sys.float_info.max)

    def parse(text: str) -> float:
        value = kind(text)
        fits = low < value if open_low else low <= value
        if not (fits and value <= high):
            begin = f"{'over' if open_low else 'from'} {low:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: expected a number {begin}{end}")
        return value

    parse.__name__ = kind.__name__
    return parse


MOST_LINES = 3
QWEN = "Qwen/Qwen2.5-7B-Instruct"
# Set before torch is imported, and only where the user has not. MKL's results may otherwise differ in the last digits from run
# to run, with the place in memory at which a buffer happens to lie: the same command is to write the same bytes.
ENVIRONMENT = {"MKL_CBWR": "AUTO,STRICT", "HF_HUB_DISABLE_TELEMETRY": "1"}
count = number(1, kind=int)
ratio = number(0.0, 1.0)
positive = number(0.0, open_low=True)


def size(text: str) -> int:
    """The argparse type of an amount of memory, as 4GB, 512MB or 2GiB: bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share(text: str) -> tuple[int, int]:
    """The argparse type of a share of the work, as 2/4: (number from 1, of how many)."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text.strip())
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: expected number/count, from 1/4 to 4/4")
    return int(found[1]), int(found[2])


class _OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong with a flag in one line, as every other error; `--help` has the usage."""

    def __init__(self, **how: object) -> None:
        super().__init__(**how)
        self.texts: list[TextFlag] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse flags in either spelling, --max_tokens and --max-tokens: documents and habits differ."""
        return super().parse_known_args([self._declared(word) for word in (args or sys.argv[1:])], namespace)

    def _declared(self, word: str) -> str:
        """Return a flag in the spelling that it was declared with; any other word as it is."""
        flag, equals, value = word.partition("=")
        spellings = (flag, f"--{flag[2:].replace('_', '-')}", f"--{flag[2:].replace('-', '_')}")
        known = next((each for each in spellings if each in self._option_string_actions), flag)
        return f"{known}{equals}{value}" if word.startswith("--") else word

    def error(self, message: str) -> NoReturn:
        """Print one line that tells a misspelt flag first, and exit with 2."""
        known = self._option_string_actions
        # A misspelt flag is told before the one that is missing because of it.
        unknown = [
            word for word in sys.argv[1:] if word.startswith("--") and self._declared(word).split("=")[0] not in known
        ]
        if unknown:
            close = nearest(unknown[0], known, 1)
            message = f"unrecognized arguments: {' '.join(unknown)}{'. ' + close.rstrip('?') if close else ''}"
        print(f"error: {message}. {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(2)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows defaults, refuses abbreviated flags and knows `--verbose`."""
    made = _OneLineParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--verbose", action="store_true", help="log details")
    return made


def add_compute_flags(made: argparse.ArgumentParser, dtype: str = "fp32", device: str = "cpu") -> None:
    """Add --device, --dtype and --threads."""
    made.add_argument("--device", default=device, help="cpu, cuda, cuda:N, mps, or auto: the best that is there")
    told = "number type to compute in; auto: bf16 where the processor computes in it, else fp32"
    made.add_argument("--dtype", default=dtype, choices=("fp32", "fp16", "bf16", "auto"), help=told)
    made.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")


def count_or_all(text: str) -> int | None:
    """The argparse type of a count, or None for `all`."""
    return None if text == "all" else count(text)


def add_window_flags(made: argparse.ArgumentParser, sequences: int = EVALUATION_WINDOWS) -> None:
    """Add --length, --sequences and --bos: how a text is cut into windows of tokens, by default as in the workflow."""
    made.add_argument(
        "--length", type=number(2, kind=int), default=WINDOW_LENGTH, help="tokens per window, as in the workflow"
    )
    told = "windows to use, as in the workflow, or all"
    made.add_argument("--sequences", type=count_or_all, default=sequences, metavar="COUNT|all", help=told)
    add_bos_flag(made)


def add_calibration_window_flags(made: argparse.ArgumentParser) -> None:
    """Add --length, --sequences and --bos for a text that is measured on."""
    add_window_flags(made, CALIBRATION_WINDOWS)


def add_bos_flag(made: argparse.ArgumentParser) -> None:
    """Add --bos."""
    made.add_argument("--bos", choices=BOS_POLICIES, default="auto", help=BOS_MEANING)


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


def add_model_flag(made: argparse.ArgumentParser) -> None:
    """Add --model and --revision."""
    told = "folder of a checkpoint, the model.json of one, or an id on the model hub (organization/name)"
    made.add_argument("--model", type=Path, required=True, help=told)
    made.add_argument("--revision", help="branch, tag or commit on the model hub; its main branch by default")


def add_base_kl_flag(made: argparse.ArgumentParser) -> None:
    """Add --allow-base-kl; without a number it allows any."""
    told = "largest KL of the model's own GGUF file from the model, nats per token; without a number: any"
    made.add_argument("--allow-base-kl", type=_base_kl, nargs="?", const=float("inf"), default=1e-3, help=told)


def _base_kl(text: str) -> float:
    """The argparse type of a limit on KL: a number from 0, or inf."""
    return float("inf") if text == "inf" else number(0.0)(text)


def add_model_id_flag(made: argparse.ArgumentParser) -> None:
    """Add --model_id, which is --model with a default, and --revision."""
    help_text = "folder of a checkpoint, a model.json, or an id on the model hub"
    made.add_argument("--model_id", "--model", dest="model", type=Path, default=Path(QWEN), help=help_text)
    made.add_argument("--revision", help="revision on the model hub: branch, tag or commit")


def _configure_logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
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
        print(f"error: {problem}", file=sys.stderr)
    if len(shown) < len(problems):
        print(f"error: and {len(problems) - len(shown)} more problems of this kind", file=sys.stderr)


# What the machine lacks, by the words of the system, of safetensors and of torch.
SHORTAGES: tuple[tuple[str, str, str], ...] = (
    ("No space left on device", "no space is left on the device", "Free some, or write to another one"),
    ("Disk quota exceeded", "the disk quota is used up", "Free some, or write to another place"),
    ("Read-only file system", "the file system is read-only", "Write to another place"),
    ("Permission denied", "permission is denied", "Choose a place that you may read and write"),
    ("out of memory", "memory is used up", "Use fewer --sequences, a smaller --dtype or a larger machine"),
    ("can't allocate memory", "memory is used up", "Use fewer --sequences, a smaller --dtype or a larger machine"),
)


def _of_the_system(error: Exception, outputs: Sequence[Path]) -> Problem | None:
    """Return an error of the machine (disk full, no right to write, no memory) as a problem; None for any other error.

    What is written aside has a name that means nothing to the user: the problem names the outputs.
    """
    text = f"{error} {getattr(error, 'strerror', '') or ''}"
    if isinstance(error, MemoryError):
        text += " out of memory"
    found = next(((what, hint) for words, what, hint in SHORTAGES if words in text), None)
    written = " or ".join(map(str, outputs)) if isinstance(error, OSError) or "os error" in text else ""
    where = written or getattr(error, "filename", None) or type(error).__name__
    return Problem(str(where), *found) if found else None


def run(made: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parse the flags, run `main` and exit: 0 done, 1 interrupted, 2 something the user has to change."""
    args = made.parse_args()
    _configure_logging(args.verbose)
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
        print("interrupted; results so far are kept where the step keeps them", file=sys.stderr)
        sys.exit(1)
