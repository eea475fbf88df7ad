"""The search methods, one line each. Rules, flags, inputs, memory, times and colours of a method are read from here.

Adding a method: its folder with `settings.py`, a line in `_ALL`, a command, a rule in `rules/search.smk`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, get_args

from pydantic import Field

from bitplan.core.colours import BLUE, GREEN, ORANGE, PURPLE, RED
from bitplan.search.adaptive.settings import AdaptivePlan
from bitplan.search.genetic.settings import GeneticPlan
from bitplan.search.optimal.settings import OptimalPlan
from bitplan.search.plan_settings import PlanSettings
from bitplan.search.random.settings import RandomPlan
from bitplan.search.sparsegpt.settings import SparseGPTPlan

CALIBRATION, STATS, TABLE = "calibration.safetensors", "layer_stats.tsv", "sensitivity.tsv"


@dataclass(frozen=True)
class Shared:
    """A setting outside the plan that its search is given too: `section`, or `section.key` as a flag of another name if `flag` says
    so; only for plans that have the setting `when`, if that is given."""

    path: str
    flag: str = ""
    when: str = ""


COMPUTE = Shared("compute")


@dataclass(frozen=True)
class Method:
    """A search method. `inputs`: results of the model that its search reads besides model.json. `beside`: what stands beside config.json
    and plan.json and belongs to them, `{of}` being config or plan. `runtimes`: whether its search is told which runtimes are to hold the plan. `memory`: a function of workflow/resources.py. `time`: hours, and
    minutes for each GB of weights. `colour`: its points in figures."""

    settings: type[PlanSettings]
    command: str
    colour: str
    inputs: tuple[str, ...] = ()
    shared: tuple[Shared, ...] = ()
    beside: str = ""
    memory: str = "model_mem_mb"
    time: tuple[int, int] = (1, 0)
    runtimes: bool = False

    @property
    def name(self) -> str:
        """The method's name in plans."""
        return get_args(self.settings.model_fields["method"].annotation)[0]


_ALL = (
    Method(
        AdaptivePlan, "adaptive_quantization_search.py", BLUE, (STATS, CALIBRATION), memory="search_mem_mb", time=(12, 20),
        # A search that is limited by a task sees as many tokens at once as the tasks of the report do.
        shared=(COMPUTE, Shared("tasks.max_length", flag="length", when="task")),
    ),
    Method(RandomPlan, "random_mixed_precision_quantization.py", ORANGE),
    Method(
        GeneticPlan, "mixed_precision_ptq.py", GREEN, (TABLE,), (COMPUTE, Shared("sensitivity.activation_scope")),
        beside="{of}.smoothing.safetensors",
    ),
    Method(
        SparseGPTPlan, "sparsegpt_enhanced.py", PURPLE, (CALIBRATION,), (COMPUTE,), "compressed", "sparsegpt_mem_mb", (12, 30)
    ),
    Method(
        OptimalPlan, "optimal_search.py", RED, (TABLE, CALIBRATION), (COMPUTE,), memory="search_mem_mb", time=(6, 20),
        runtimes=True,
    ),
)  # fmt: skip
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
AnyPlan = Annotated[reduce(or_, (method.settings for method in _ALL)), Field(discriminator="method")]
