"""Errors that a user can fix: what is wrong, where, what was expected and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` (file, key or layer), `what`, and what to do in `hint`.

    `code` names the kind of problem, as AREA-WHAT. It stays the same when the wording changes; docs/errors.md lists all codes.
    """

    code: str
    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"[{self.code}] {self.where}: {self.what}"
        return f"{text}. {self.hint}" if self.hint else text


class UserError(Exception):
    """Invalid input. Holds every problem found, so that one run shows them all."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple:
        """Keep the problems when the error is pickled: by default an exception keeps only its joined text."""
        return UserError, (self.problems,)


def user_error(code: str, where: object, what: str, hint: str = "") -> UserError:
    """Return a `UserError` with a single problem."""
    return UserError([Problem(code, str(where), what, hint)])


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return a hint that names the known words closest to `name`, or "" when none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(word) for word in close)}?" if close else ""
