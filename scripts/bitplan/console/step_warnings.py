"""What the steps of a run warned of: from the records beside their results, each warning once."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitplan.console.project import Project

# So many are shown; the logs have all.
MOST = 8
RECORDS = "*.meta.json"


@dataclass(frozen=True)
class StepWarning:
    """A warning of a step. `log` is the step's log, None where its record does not say; `alike` counts others that differ in numbers alone."""

    text: str
    log: Path | None = None
    alike: int = 0

    @property
    def line(self) -> str:
        """The warning in one line."""
        notes = (f"and {self.alike} alike" if self.alike else "", f"log: {self.log}" if self.log else "")
        told = "; ".join(filter(None, notes))
        return f"warning: {self.text}" + (f" ({told})" if told else "")


def _recorded(project: Project, record: Path) -> Iterator[StepWarning]:
    """Yield the warnings of a `.meta.json`; a record that cannot be read, or that an earlier version wrote, has none."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        texts, log = content.get("warnings", ()), content.get("log")
    except (OSError, ValueError, AttributeError):
        return
    place = Path(log) if log else None
    for text in texts:
        # Seen from the model's results: the folder of a project means nothing to the user.
        shown = re.sub(rf"\bresults/{re.escape(project.name)}/" if project.name else r"\bresults/", "", text)
        yield StepWarning(" ".join(shown.split()), place and Path(os.path.relpath(project.folder / place)))


def warnings_of(project: Project, records: Iterable[Path]) -> list[StepWarning]:
    """Return the warnings in records of a project's steps, in their order; of those that differ in numbers alone the first."""
    alike: dict[str, dict[str, StepWarning]] = {}
    for record in records:
        for warning in _recorded(project, record):
            alike.setdefault(re.sub(r"\d+", "#", warning.text), {}).setdefault(warning.text, warning)
    return [replace(next(iter(group.values())), alike=len(group) - 1) for group in alike.values()]


def records_of(project: Project, plans: Sequence[str], baselines: Sequence[str] = ()) -> list[Path]:
    """Return the records of the steps behind some plans and baselines of a model: those of the plans first, then the model's own."""
    folders = (
        [project.result("plans", plan) for plan in plans],
        [project.result("baselines", each) for each in baselines],
    )
    of_plans, of_baselines = ([path for folder in each for path in sorted(folder.rglob(RECORDS))] for each in folders)
    return [*of_plans, *sorted(project.result().glob(RECORDS)), *of_baselines]


def tell_warnings(warnings: Sequence[StepWarning]) -> None:
    """Print warnings to stderr, a line each, behind what was printed before; of many the first, and how many more there are."""
    sys.stdout.flush()
    for warning in warnings[:MOST]:
        print(warning.line, file=sys.stderr)
    if len(warnings) > MOST:
        print(f"warning: {len(warnings) - MOST} more in the logs", file=sys.stderr)
    sys.stderr.flush()
