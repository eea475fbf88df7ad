"""Flags for a text that have a default for the bundled model, and for no other: a real model is not measured on the toy stories."""

import argparse
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bitplan.core.errors import Problem, UserError
from bitplan.core.files import read_json
from bitplan.demo import DEMO

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFlag:
    """A flag for a text, the file of the demo that is its default, and whether the other flags want a text at all."""

    flag: str
    bundled: str
    wanted: Callable[[argparse.Namespace], bool]

    @property
    def dest(self) -> str:
        """The attribute of the parsed flags."""
        return self.flag.removeprefix("--").replace("-", "_")


def is_bundled(model: str | Path | None) -> bool:
    """Return whether a folder, or a `model.json`, is that of the bundled model; so is None, the default of some commands."""
    if model is None:
        return True
    model = Path(model)
    if model.suffix == ".json" and os.path.isfile(model):
        model = Path(str(read_json(model).get("path", model)))
    return os.path.realpath(model) == os.path.realpath(DEMO / "model")


def text_beside(model: Path, bundled: str) -> Path | None:
    """Return a text for a model that was found after the flags were read: the bundled model's own, None for any other.

    A warning says what is left out without one.
    """
    if is_bundled(model):
        return DEMO / bundled
    log.warning("%s is the original, but there is no --text: perplexity and KL are left out", model)
    return None


def fill_texts_(flags: Iterable[TextFlag], args: argparse.Namespace) -> None:
    """Put the bundled text in the place of each text that is wanted and was not given. Raises `UserError` for any other model."""
    missing = [each for each in flags if getattr(args, each.dest) is None and each.wanted(args)]
    bundled = is_bundled(getattr(args, "model", None))
    if missing and not bundled:
        what = "is required: there is no default text for this model"
        hint = "Give a UTF-8 text similar to what the model will be used on"
        raise UserError(Problem("TEXT-MISSING", each.flag, what, hint) for each in missing)
    for each in missing:
        setattr(args, each.dest, DEMO / each.bundled)
        log.info("no %s was given: using the bundled model's own, %s", each.flag, DEMO / each.bundled)
