"""Errors in the user's words: the workflow and its steps name settings and flags of their own, the user typed those of `bitplan`."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from bitplan.core.errors import Problem, UserError

# What a command of the program calls a setting of its model or its plan.
OF_MODEL = {
    "path": "the model",
    "revision": "--revision",
    "calibration": "--text",
    "evaluation": "--evaluation",
}
OF_PLAN = {
    "target_avg_bits": "--bits",
    "same_size_as": "--same-size-as",
    "max_size": "--max-size",
    "palette": "--runtime",
    "rounding": "--rounding",
}
# How a setting is changed that no flag sets.
EDITED = "(in the config.yaml that bitplan init writes, for bitplan compare)"


def typed_words(args: Namespace, model: str, plan: str) -> dict[str, str]:
    """Return {what the workflow names: what was typed} for the settings of a model and a plan that come from flags. The evaluation text that
    is the rest of the calibration text is --text."""
    of_model = OF_MODEL if args.evaluation else {**OF_MODEL, "evaluation": "--text"}
    settings = {f"models.{model}.{key}": flag for key, flag in of_model.items()}
    settings |= {f"plans.{plan}.{key}": flag for key, flag in OF_PLAN.items()}
    return settings | ({"--target-avg-bits": "--bits"} if args.bits is not None else {})


def as_typed(text: str, typed: Mapping[str, str]) -> str:
    """Return a text with each of the workflow's names replaced by what was typed."""
    for name, word in typed.items():
        text = text.replace(name, word)
    return text


def _in_words(problem: Problem, typed: Mapping[str, str]) -> Problem:
    setting, mark, value = problem.where.partition(": ")
    flag = typed.get(setting, "")
    words = {key: as_typed(getattr(problem, key), typed) for key in ("where", "what", "hint")}
    if mark and flag.startswith("--"):
        words["where"] = f"{flag} {value}"
    words["hint"] += f" {EDITED}" if ".sequences" in problem.hint else ""
    return replace(problem, **words)


@contextmanager
def in_typed_words(typed: Mapping[str, str]) -> Iterator[None]:
    """Raise a `UserError` from within in the user's words; of problems that are then alike, one."""
    try:
        yield
    except UserError as error:
        raise UserError(dict.fromkeys(_in_words(problem, typed) for problem in error.problems)) from error
