"""Evaluations that a search has paid for, kept beside its output until it ends: killed at any moment, the next run goes on from there."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitplan.core.files import write_aside
from bitplan.core.resume import digest_of
from bitplan.models.walk import StreamedModel
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference

log = logging.getLogger(__name__)


def key_of(plan: Plan, *more: object) -> str:
    """Return the SHA-256 of a plan's formats by layer, and of what else tells one evaluation from another."""
    formats = {name: (made.wq, made.aq, made.group_size) for name, made in plan.layers.items()}
    return digest_of({"formats": formats, "more": more})


def facts_of(model: PreparedModel, weights: QuantizedWeights) -> dict[str, Any]:
    """Return what decides the figures of any plan of a model."""
    return {**model.facts, "importance": dict(weights.importance)}


def facts_of_text(text: Reference | None) -> dict[str, Any]:
    """Return what decides the figures of plans on a text; nothing without one."""
    return {} if text is None else {"tokens": text.tokens, "shape": tuple(text.tokens.shape), "hidden": text.hidden}


@dataclass(frozen=True)
class _Figures:
    figures: list[float]
    tokens: int


@dataclass
class Evaluations:
    """Figures by key in a file of one JSON object a line; the first line says of what they are. Without a path nothing is kept.

    A line is added when its evaluation ends, and a line that was torn is not read: at most the evaluation under way is lost.
    """

    path: Path | None = None
    digest: str = ""
    _known: dict[str, _Figures] = field(default_factory=dict)
    _begun: bool = False

    @classmethod
    def beside(cls, output: Path, facts: Mapping[str, Any]) -> "Evaluations":
        """Return what is kept in `<output>.evaluations`: nothing where that is of other facts. Nothing is written yet."""
        path, digest = Path(output).with_name(f"{Path(output).name}.evaluations"), digest_of(facts)
        head, *rows = _whole_lines(path) or [{}]
        if head.get("digest") != digest:
            if head:
                log.warning("%s is of another model, text or setting: beginning anew", path)
            rows = []
        known = {row["of"]: _Figures(row["figures"], row["tokens"]) for row in rows}
        if known:
            log.info("going on from %s: %d evaluations are done already", path, len(known))
        return cls(path, digest, known)

    def once(self, key: str, model: StreamedModel, make: Callable[[], Sequence[float]]) -> list[float]:
        """Return the figures kept under a key, made by running the model and kept first where they are not there.

        The model counts the tokens of a kept evaluation as if they were run now: a search's cost is the same however often it was killed.
        """
        held = self._known.get(key)
        if held is not None:
            model.tokens_forwarded += held.tokens
            return held.figures
        before = model.tokens_forwarded
        made = _Figures([float(figure) for figure in make()], model.tokens_forwarded - before)
        if self.path is not None:
            self._keep(key, made)
        return made.figures

    def _keep(self, key: str, made: _Figures) -> None:
        if not self._begun:
            self._begin()
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(_line(key, made))
        self._known[key] = made

    def _begin(self) -> None:
        """Write the file anew, without what a killed run has torn."""
        with write_aside(self.path) as aside:
            kept = "".join(_line(key, made) for key, made in self._known.items())
            aside.write_text(json.dumps({"digest": self.digest}) + "\n" + kept, encoding="utf-8")
        self._begun = True

    def remove(self) -> None:
        """Remove the file: the results of the search are written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(key: str, made: _Figures) -> str:
    # json writes floats as repr does, so that they are read back as they were, NaN and infinity too.
    return json.dumps({"of": key, "figures": made.figures, "tokens": made.tokens}) + "\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects before the first line that is torn or no JSON object; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in text.split("\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        wanted = {"of", "figures", "tokens"} if found else {"digest"}
        if not isinstance(row, dict) or not wanted <= row.keys():
            break
        found.append(row)
    return found
