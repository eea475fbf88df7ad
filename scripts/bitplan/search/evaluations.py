"""Evaluations that a search has paid for, kept beside its output until it ends: killed at any moment, the next run resumes from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.core.files import read_json
from bitplan.core.resume import PartialResults, digest_of
from bitplan.models.walk import StreamedModel
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference


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


@dataclass
class Evaluations:
    """Figures by key: a file each in the folder `<output>.partial`. Without an output nothing is kept.

    A file is whole or not there: at most the evaluation under way is lost.
    """

    output: Path | None = None
    digest: str = ""
    _kept: PartialResults | None = None

    @classmethod
    def beside(cls, output: Path, facts: Mapping[str, Any]) -> "Evaluations":
        """Return what is kept beside an output: nothing where that is of other facts. Nothing is written before the first figure."""
        digest = digest_of(facts)
        begun = PartialResults.folder_of(output).is_of(digest)
        return cls(Path(output), digest, PartialResults.open(output, digest) if begun else None)

    def once(self, key: str, model: StreamedModel, make: Callable[[], Sequence[float]]) -> list[float]:
        """Return the figures kept under a key, made by running the model and kept first where they are not there.

        The model counts the tokens of a kept evaluation as if they were run now: a search's cost is the same however often it was killed.
        """
        name = f"{key}.json"
        if self._kept is not None and self._kept.has(name):
            told = read_json(self._kept.folder / name)
            model.tokens_forwarded += told["tokens"]
            return told["figures"]
        before = model.tokens_forwarded
        figures = [float(figure) for figure in make()]
        if self.output is not None:
            self._kept = self._kept or PartialResults.open(self.output, self.digest)
            self._kept.keep_exactly(name, {"figures": figures, "tokens": model.tokens_forwarded - before})
        return figures

    def remove(self) -> None:
        """Remove what is kept: the results of the search are written."""
        if self._kept is not None:
            self._kept.remove()
