"""The damage of whole plans: KL by window, each plan and window computed once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bitplan.evaluate.perplexity import score_plan
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference
from bitplan.search.evaluations import Evaluations, key_of

Choice = NDArray[np.intp]


def part_of(reference: Reference, start: int, stop: int) -> Reference:
    """Return the reference on some of its windows."""
    return replace(reference, tokens=reference.tokens[start:stop], hidden=reference.hidden[start:stop])


@dataclass
class PlanDamage:
    """Measures plans of choices on a reference's windows. `evaluations` counts plans that were run, over whatever windows.

    What is run is `kept`, under the name of the `text`: runs of one search that were killed count as one.
    """

    model: PreparedModel
    reference: Reference
    weights: QuantizedWeights
    plan_of: Callable[[Choice], Plan]
    evaluations: int = 0
    kept: Evaluations = field(default_factory=Evaluations)
    text: str = ""
    _known: dict[bytes, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.reference.tokens)

    def by_window(self, choice: Choice, windows: int | None = None) -> NDArray[np.float64]:
        """Return the mean KL per token of each of the first `windows` windows (all by default), in nats."""
        wanted = self.windows if windows is None else min(windows, self.windows)
        held = self._known.get(choice.tobytes(), np.empty(0))
        if len(held) < wanted:
            plan, start = self.plan_of(choice), len(held)
            key = key_of(plan, self.text, start, wanted)
            new = self.kept.once(key, self.model.model, lambda: self._measured(plan, start, wanted))
            held = np.append(held, new)
            self._known[choice.tobytes()] = held
            self.evaluations += 1
        return held[:wanted]

    def _measured(self, plan: Plan, start: int, stop: int) -> list[float]:
        """Return the mean KL per token of each of some windows under a plan, in nats."""
        some = part_of(self.reference, start, stop)
        scores = score_plan(self.model.model, self.model.info, plan, some, self.weights)
        return scores.kl.double().mean(dim=1).tolist()
