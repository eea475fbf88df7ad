"""The work of the sensitivity table: rows, prices from gradients, KL of anchors (docs/sensitivity.md, Cost)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from bitplan.config.settings import SensitivitySettings
from bitplan.core.sizes import parse_size
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_formats
from bitplan.formats.pairs import parse_pair
from bitplan.models.layers import Layer
from bitplan.workflow.estimate.case import FLOAT, OPENED, Case, Step, Work, added, times
from bitplan.workflow.estimate.rates import QUANTIZE

# Every table has 4-bit weights with 4- and with 8-bit inputs, which share their quantized weights.
W4, WITH_INPUTS = "int4", 2
# What a layer's inputs are looked at for, in shares of their moments: the largest and the mean square of each column.
LOOKED_AT = 0.5


@dataclass(frozen=True)
class _Table:
    """The table of a model under its settings."""

    case: Case

    @property
    def section(self) -> SensitivitySettings:
        return self.case.settings.sensitivity

    @cached_property
    def tokens(self) -> int:
        return self.case.of("calibration")

    @property
    def draws(self) -> int:
        return self.section.draws if self.case.settings.priced else 0

    @cached_property
    def windows(self) -> int:
        return self.tokens // self.case.settings.calibration.length

    def weights_of(self, layer: Layer) -> list[str]:
        """Return the formats that a layer's weights are quantized in."""
        return [W4, *(parse_pair(name).wq for name in self._palette(layer))]

    def _palette(self, layer: Layer) -> list[str]:
        names = fitting_formats(self.section.palette, layer.shape[1])
        return [name for name in names if parse_pair(name).wq != UNQUANTIZED or parse_pair(name).aq != UNQUANTIZED]

    def candidates_of(self, layer: Layer) -> int:
        """Return how many candidates a layer has."""
        return WITH_INPUTS + len(self._palette(layer))

    @cached_property
    def candidates(self) -> float:
        """Candidates of a weight, on average."""
        return self.total / self.case.values

    @cached_property
    def total(self) -> float:
        """Candidates of all weights."""
        return float(sum(layer.params * self.candidates_of(layer) for layer in self.case.info.quantizable))

    def quantizing(self) -> Work:
        """Return the work of quantizing every layer in each of its formats."""
        work: Work = {}
        for layer in self.case.info.quantizable:
            for form in self.weights_of(layer):
                work[f"{QUANTIZE}{form}"] = work.get(f"{QUANTIZE}{form}", 0.0) + layer.params
        return work

    # -- rows ----------------------------------------------------------------------------------------------------------

    def rows(self) -> Work:
        """Return the work of the states of all blocks, and of a row for each candidate from some windows."""
        case, length = self.case, self.case.settings.calibration.length
        looked = min(self.tokens, -(-self.section.tokens // length) * length)
        observed = self.tokens * sum(layer.shape[1] for layer in case.info.quantizable)
        return added(
            times(2, case.walk(self.tokens)),
            {"moment": LOOKED_AT * observed, "change": (1 + self.candidates) * looked * case.blocks},
            # Smoothing factors are checked by running the block on one window again.
            {"forward": float(length * case.blocks)} if self.section.smooth_alpha else {},
            self.quantizing(),
        )

    # -- prices --------------------------------------------------------------------------------------------------------

    @cached_property
    def embeddings(self) -> list[str]:
        """The formats of the embedding and of the output matrix, for each of them that is stored."""
        stored = [layer for layer in self.case.info.layers if layer.is_embedding and not layer.tied]
        return [form for layer in stored for form in fitting_formats(self.section.embeddings or (), layer.shape[1])]

    @property
    def gradients(self) -> float:
        """Bytes of the gradients of all draws at the states of the text."""
        return FLOAT * self.draws * self.tokens * self.case.hidden

    def bytes_of(self, layer: Layer) -> float:
        """Return the bytes that a layer's quantized weights and changes take, as `Pricing` counts them."""
        return 2 * FLOAT * layer.params * self.candidates_of(layer)

    @cached_property
    def groups(self) -> float:
        """How often a block goes backwards, on average: once for each group of layers whose changes are held together."""
        room, found = parse_size(self.section.memory_limit) - self.gradients, 0
        for block in range(self.case.blocks):
            held = 0.0
            for layer in (each for each in self.case.info.quantizable if each.block == block):
                if held and held + self.bytes_of(layer) > room:
                    found, held = found + 1, 0.0
                held += self.bytes_of(layer)
            found += 1
        return found / self.case.blocks

    def prices(self) -> Work:
        """Return the work of going back through all blocks with the draws, and of the products with each candidate's change."""
        case, once = self.case, float(self.tokens * self.case.blocks)
        embeddings = {f"{QUANTIZE}{form}": 2.0 * case.vocabulary * case.hidden for form in self.embeddings}
        return added(
            case.reading(),
            {"gradient": self.groups * once, "draw": self.groups * self.draws * once},
            {"change": self.candidates * once, "product": self.draws * self.candidates * once},
            {"label": float(self.draws * self.tokens), "nll": float(len(self.embeddings) * self.tokens)},
            self.quantizing(),
            embeddings,
        )

    # -- anchors -------------------------------------------------------------------------------------------------------

    @property
    def anchors(self) -> float:
        """Candidates of a layer whose KL is measured."""
        return {1: 1.0, 2: 2.0, "all": self.candidates}.get(self.section.anchors, 0.0)

    def carried(self) -> Work:
        """Return the work of carrying the anchors of every layer from its block to the end, and of scoring them."""
        layers, blocks = len(self.case.info.quantizable), self.case.blocks
        once = self.anchors * layers * self.tokens
        return {"forward": once * (blocks + 1) / 2, "score": once}

    # -- memory --------------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> float:
        """Bytes held beside an open model."""
        states = self.case.walk_memory("calibration")
        if not self.draws:
            return states
        room = max(parse_size(self.section.memory_limit) - self.gradients, 2 * FLOAT * self.case.largest)
        changes = min(room, 2 * FLOAT * self.total / self.case.blocks)
        outputs = sum(layer.shape[0] * self.candidates_of(layer) for layer in self.case.info.quantizable)
        moved = FLOAT * self.case.settings.calibration.length * outputs / self.case.blocks
        return states + self.gradients + changes + moved


def of_table(case: Case) -> Iterator[Step]:
    """Yield the sensitivity table, where a plan is searched from it."""
    section = case.settings.sensitivity
    if not any(plan.method in ("genetic", "optimal") for plan in case.settings.plans.values()):
        return
    table = _Table(case)
    work = added(table.rows(), table.prices() if table.draws else {}, table.carried() if table.anchors else {})
    rule = "sensitivity" if section.shards == 1 else "sensitivity_shard"
    one = added(OPENED, times(1 / section.shards, work))
    yield Step(rule, section.shards, one, table.memory, 1e5 * case.blocks)
