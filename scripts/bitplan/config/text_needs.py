"""How much of a model's texts the settings use, in tokens, and whether a text can be long enough: its bytes bound its tokens."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitplan.config.same_text import same_text
from bitplan.config.settings import Settings, WindowSettings
from bitplan.core.errors import Problem
from bitplan.reference.token_count import most_tokens
from bitplan.search.optimal.settings import FEWEST_WINDOWS
from bitplan.search.registry import METHODS

SECTIONS = ("calibration", "validation", "evaluation")
# Of English under the usual tokenizers, about.
BYTES_PER_TOKEN = 4
# The fewest windows that a section can do with.
FEWEST: Mapping[str, int] = {"validation": FEWEST_WINDOWS}


@dataclass(frozen=True)
class TextNeed:
    """What is cut from a text, in its order: section of the settings and its windows. `key` is the text's setting of a model."""

    key: str
    path: str
    parts: tuple[tuple[str, WindowSettings], ...]

    def tokens(self, first: int = 0) -> int:
        """Return how many tokens the text needs if `first` of each window, BOS, are not the text's; of all windows (null) one."""
        return _tokens([(part.sequences or 1, part.length) for _, part in self.parts], first)

    @property
    def words(self) -> str:
        """What is cut, in words: "16 windows of 512 tokens for calibration, 32 of 512 for evaluation"."""
        shown = [f"{part.sequences or 1} of {part.length} for {name}" for name, part in self.parts]
        return ", ".join((shown[0].replace(" of ", " windows of ", 1), *shown[1:]))

    def fitting(self, available: int, first: int = 0) -> dict[str, int]:
        """Return numbers of windows for which so many tokens are enough, {section: windows}, in the shares of the settings; empty if none are."""
        share = available / max(1, self.tokens(first))
        counts = {name: max(FEWEST.get(name, 1), int(share * (part.sequences or 1))) for name, part in self.parts}
        enough = _tokens([(counts[name], part.length) for name, part in self.parts], first) <= available
        return counts if enough else {}

    def problem(self, model: str, has: str, way_out: str, first: int = 0) -> Problem:
        """Return the problem of a text that is too short; `has` says how long it is, `way_out` what helps."""
        what = f"{has}, and {self.tokens(first):,} are needed: {self.words}"
        return Problem("TEXT-TOO-SHORT", f"models.{model}.{self.key}: {self.path}", what, way_out)

    def fewer_windows(self, available: int, first: int = 0) -> str:
        """Return the way out for a text of so many tokens: a longer one, or settings that it is enough for."""
        fewer = ", ".join(f"{name}.sequences: {count}" for name, count in self.fitting(available, first).items())
        return f"Give a longer text{', or set ' if fewer else ''}{fewer}"


def _tokens(windows: list[tuple[int, int]], first: int) -> int:
    """Return the tokens up to the end of the last of some (windows, length); those before are counted whole."""
    before = sum(count * length for count, length in windows[:-1])
    return before + windows[-1][0] * (windows[-1][1] - first)


def _is_calibrated(settings: Settings) -> bool:
    """Return whether any step looks at the calibration text."""
    plans = settings.every_plan
    rounded = any(settings.rounding_of(plan) != "nearest" for plan in plans)
    return settings.imatrix or rounded or any(METHODS[plan.method].inputs for plan in plans.values())


def _is_validated(settings: Settings) -> bool:
    plans = settings.every_plan.values()
    return any(getattr(plan, "correct", False) or getattr(plan, "refine", False) for plan in plans)


def needs_of(settings: Settings, name: str) -> Iterator[TextNeed]:
    """Yield what is needed of each text of a model: of one that is calibration and evaluation text it stands in one.

    Nothing can be cut behind a section that uses all of its text: its error is raised elsewhere (`tokens_seen`).
    """
    model = settings.models[name]
    shared = same_text(model.calibration, model.evaluation)
    used = {"calibration": _is_calibrated(settings), "validation": _is_validated(settings), "evaluation": shared}
    last = max((place for place, section in enumerate(SECTIONS) if used[section]), default=-1)
    parts = [(section, getattr(settings, section)) for section in SECTIONS[: last + 1]]
    whole = next((place for place, (_, part) in enumerate(parts) if part.sequences is None), len(parts))
    if parts:
        yield TextNeed("calibration", model.calibration, tuple(parts[: whole + 1]))
    if not shared:
        yield TextNeed("evaluation", model.evaluation, (("evaluation", settings.evaluation),))


def short_texts(settings: Settings, name: str) -> Iterator[Problem]:
    """Yield the texts of a model that are too short under any tokenizer. Raises `UserError` for a short file that is not UTF-8 text."""
    first = int(settings.bos != "never")
    for need in needs_of(settings, name):
        path, needed = Path(need.path), need.tokens(first)
        # A text of more bytes than tokens are needed is not read.
        if path.is_file() and os.path.getsize(path) < needed and (most := most_tokens(path)) < needed:
            fewer = ", ".join(f"{section}.sequences" for section, _ in need.parts)
            hint = f"Give a longer text ({BYTES_PER_TOKEN * needed // 1000:,} kB of English or so), or a lower {fewer}"
            yield need.problem(name, f"has at most {most:,} tokens, one for each byte", hint, first)
