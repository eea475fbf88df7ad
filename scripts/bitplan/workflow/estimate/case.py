"""A model as an estimate sees it, and amounts of work: what walking it, quantizing it and scoring it take, in the units of `rates.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bitplan.config.settings import Settings, WindowSettings
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_format
from bitplan.models.layers import Layer, ModelInfo
from bitplan.workflow.estimate.rates import QUANTIZE, RESTORE

# Layers of these categories read one tensor.
SHARED_INPUTS = (("attn_q", "attn_k", "attn_v"), ("mlp_gate", "mlp_up"))
# Logits, and what is made of them, of a slice of tokens: evaluate/scores.py.
LOGIT_VALUES = 1 << 25
# Tokens that go through a block at once (models/walk.py), and values of each besides the layers' outputs, in hidden sizes.
BATCH, BESIDE = 2048, 6
# Bytes that llama.cpp's library and its buffers take.
LLAMA_BYTES = 1e8
FLOAT = 4.0

Work = dict[str, float]
# What processes load before they do anything: torch, and with the model transformers.
TORCH: Mapping[str, float] = {"python": 1.0, "torch": 1.0}
OPENED: Mapping[str, float] = {**TORCH, "model": 1.0}
# Other packages, in shares of what torch takes to load: the solver's, the reader of GGUF files, llama.cpp, those that draw charts.
SOLVER, GGUF, LLAMA_LOADED, PAGE = {"torch": 0.7}, {"torch": 0.3}, {"torch": 0.1}, {"torch": 1.5}


@dataclass(frozen=True)
class Step:
    """A kind of job: its rule, how many of it there are, and the work of one, {unit: amount}. `alone`: it takes the whole machine.

    `held` is the memory in bytes beside an open model, `disk` what one leaves. `perhaps` is work that comes besides where what is found asks for it,
    in at most so many seconds.
    """

    rule: str
    jobs: int
    work: Mapping[str, float]
    held: float = 0.0
    disk: float = 0.0
    alone: bool = False
    perhaps: Mapping[str, float] = field(default_factory=dict)
    at_most: float = math.inf


def added(*parts: Mapping[str, float]) -> Work:
    """Return the sum of some amounts of work."""
    total: Work = {}
    for part in parts:
        for unit, amount in part.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def times(count: float, work: Mapping[str, float]) -> Work:
    """Return work that is done so many times."""
    return {unit: count * amount for unit, amount in work.items()}


def windows_of(section: WindowSettings, available: int) -> int:
    """Return how many windows of a text of `available` tokens are used."""
    most = max(1, available // section.length)
    return most if section.sequences is None else min(most, section.sequences)


@dataclass(frozen=True)
class Case:
    """A model as the settings name it: its description, hidden and vocabulary sizes, bytes of a stored value, tokens of its texts {name: tokens}."""

    name: str
    info: ModelInfo
    settings: Settings
    hidden: int
    vocabulary: int
    stored: int = 2
    tokens: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return 1 + max(layer.block for layer in self.info.quantizable)

    @cached_property
    def values(self) -> int:
        """Weights inside the blocks."""
        return sum(layer.params for layer in self.info.quantizable)

    @property
    def block_values(self) -> float:
        """Weights of one block, on average."""
        return self.values / self.blocks

    @cached_property
    def largest(self) -> int:
        """Weights of the largest matrix inside a block."""
        return max(layer.params for layer in self.info.quantizable)

    @cached_property
    def read(self) -> list[Layer]:
        """The layers whose inputs are different tensors: of those that share one the first."""
        held: dict[tuple[int, object], Layer] = {}
        for layer in self.info.quantizable:
            group = next((number for number, names in enumerate(SHARED_INPUTS) if layer.category in names), layer.name)
            held.setdefault((layer.block, group), layer)
        return list(held.values())

    def of(self, text: str) -> int:
        """Return the tokens of "calibration", "validation" or "evaluation" that are used."""
        section: WindowSettings = getattr(self.settings, text)
        available = self.tokens.get(text, section.length * (section.sequences or 1))
        return windows_of(section, available) * section.length

    def states(self, text: str) -> float:
        """Return the bytes of the hidden states of a text, float32."""
        return FLOAT * self.of(text) * self.hidden

    # -- work --------------------------------------------------------------------------------------------------------

    def reading(self) -> Work:
        """Return the work of loading all blocks once."""
        return {"read": float(self.values * self.stored)}

    def walk(self, tokens: float) -> Work:
        """Return the work of carrying tokens through all blocks, which are read once."""
        return {**self.reading(), "forward": float(tokens * self.blocks)}

    def quantizing(self, formats: Mapping[str, float]) -> Work:
        """Return the work of quantizing all layers and reading them back, {format: share of the weights}; rows may get a substitute."""
        return self._by_format(QUANTIZE, formats)

    def restoring(self, formats: Mapping[str, float]) -> Work:
        """Return the work of reading back all layers that are kept quantized, {format: share of the weights}."""
        return self._by_format(RESTORE, formats)

    def _by_format(self, unit: str, formats: Mapping[str, float]) -> Work:
        work: Work = {}
        for name, share in formats.items():
            for layer in self.info.quantizable:
                form = fitting_format(name, layer.shape[1])
                if form != UNQUANTIZED:
                    work[f"{unit}{form}"] = work.get(f"{unit}{form}", 0.0) + share * layer.params
        return work

    def quantizing_inputs(self, tokens: float, formats: Mapping[str, float]) -> Work:
        """Return the work of quantizing the inputs of all layers, {format: share of the layers}: a tensor that layers share once."""
        columns = sum(layer.shape[1] for layer in self.read)
        return {f"{QUANTIZE}{name}": share * tokens * columns for name, share in formats.items()}

    def moments(self, tokens: float) -> Work:
        """Return the work of the second moments of all layers' inputs: x x^T, and what is summed of each column."""
        return {
            "moment": float(tokens * sum(layer.shape[1] for layer in self.read)),
            "multiply": float(tokens * sum(layer.shape[1] ** 2 for layer in self.read)),
        }

    def evaluation(self, text: str, scored: str = "score") -> Work:
        """Return the work of running a text through all blocks and scoring it: with KL ("score") or without ("nll")."""
        tokens = self.of(text)
        return added(self.walk(tokens), {scored: float(tokens)})

    # -- memory ------------------------------------------------------------------------------------------------------

    @property
    def logits(self) -> float:
        """Bytes of the logits that are scored at once, of two models, with one copy of each."""
        return 4 * FLOAT * min(LOGIT_VALUES, self.vocabulary * 512)

    def walk_memory(self, text: str, states: float = 3) -> float:
        """Return the bytes of a walk beside an open model: a block and two copies of its largest matrix in fp32, what it computes of a batch of
        tokens, output matrix, logits, states.

        states: how many copies of the text's hidden states are held.
        """
        block = FLOAT * self.block_values + 2 * FLOAT * self.largest
        head = self.stored * float(self.vocabulary * self.hidden)
        outputs = sum(layer.shape[0] for layer in self.info.quantizable) / self.blocks
        batch = FLOAT * min(BATCH, self.of(text)) * (outputs + BESIDE * self.hidden)
        return block + head + batch + self.logits + states * self.states(text)
