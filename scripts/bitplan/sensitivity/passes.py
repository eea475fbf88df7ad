"""The streamed measurement: the full-precision states once, then passes in which candidates are born at their block and carried on.

1. The model is walked; the hidden states that each block gets are kept on disk.
2. For the Fisher score, the loss's gradient at these states is made by one backward walk.
3. In each pass, at the blocks of its layers: every (layer, format) is quantized once, its row is made, and where KL is measured a
   candidate is born from the kept states; all candidates of the pass go through the later blocks together, each block loaded once.
   At the end their final hidden states are compared with the model's.
Every piece is kept as soon as it is done, and within a pass what its candidates have become, block by block.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from bitplan.core.progress import progress
from bitplan.core.resume import SHARE, PartialResults, WalkProgress, digest_of, gradient_name, load_states, states_name
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.smoothing import SmoothGroup, Smoothing, read_smoothing, write_smoothing
from bitplan.reference.head import StoredHead
from bitplan.reference.reference import Reference
from bitplan.sensitivity.candidate_outputs import newborn
from bitplan.sensitivity.candidates import (
    MeasureSettings,
    Pass,
    Piece,
    check_draws,
    most_carried,
    passes,
    share_of,
    wanted_pieces,
)
from bitplan.sensitivity.embeddings import EmbeddingCandidate, embedding_row, row_of
from bitplan.sensitivity.gradients import as_block_runs, batch_of, keep_gradients
from bitplan.sensitivity.kld import kld_by_window
from bitplan.sensitivity.local_errors import (
    SensitivitySettings,
    best_groups,
    fitting_choices,
    layer_rows,
    layer_weight,
    quantized_weights,
    with_asked,
    with_digest,
)
from bitplan.sensitivity.output_gradients import OutputGradients, gradient_of_outputs
from bitplan.sensitivity.prices import Pricing
from bitplan.sensitivity.smooth_factors import checked_groups
from bitplan.statistics.alpha_hill import alpha_hill, spectrum
from bitplan.statistics.inputs import BlockInputs, observe_inputs

log = logging.getLogger(__name__)
BASE, PRICES = "base.json", "prices"
FIT = "hill"
BACKWARD = 2  # block-forwards that a backward through a block counts as


@dataclass(frozen=True)
class Measured:
    """What a measurement gave: rows of the table, with `by_window` and `price_by_window`, KL and price of each window, where there are such;
    the smoothing; its cost."""

    rows: list[dict[str, Any]]
    smoothing: Smoothing | None
    block_forwards: float


def planned(
    model: StreamedModel, info: ModelInfo, tokens: Tensor, settings: SensitivitySettings, measure: MeasureSettings
) -> list[Pass]:
    """Return the passes of a measurement.

    Raises `UserError` where there is no format to choose as anchor, or too little memory or too many shards.
    """
    layers = share_of(info.quantizable, measure.shard)
    wanted = wanted_pieces(layers, settings.choices, measure.anchors)
    candidates = sum(len(piece.carried) for piece in wanted)
    values = tokens.numel() * model.module.config.hidden_size
    if measure.draws is not None:
        check_draws(measure.memory_limit, values, measure.draws)
    state = values * model.dtype.itemsize
    most = most_carried(measure.memory_limit, state, candidates) if candidates else 1
    made = passes(wanted, most, len(model.blocks))
    log.info("%d layers, %d candidates in %d passes", len(layers), sum(each.carried for each in made), len(made))
    return made


@dataclass
class Measurement:
    """A measurement under way. `settings` say what a row is, `measure` what is measured besides; `alphas` are known alphas by layer, `importance` the mean squares of each layer's input columns (in,) that its weights are quantized with.

    `keep_share` is how much of a pass's time may go into keeping its progress. `saved` counts block-forwards that the walk counts, and
    that were not run in full.
    """

    model: StreamedModel
    info: ModelInfo
    tokens: Tensor
    settings: SensitivitySettings
    measure: MeasureSettings
    kept: PartialResults
    alphas: Mapping[str, float] | None = None
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    keep_share: float = SHARE
    saved: float = field(default=0.0, init=False)

    def run(self, plan: Sequence[Pass], embeddings: Sequence[EmbeddingCandidate] = ()) -> Measured:
        """Return the rows of the passes' layers, in model order, and of what stands outside the blocks, going on from what is kept.

        Raises `UserError`.
        """
        base = self.base()
        results = [self.result_of(each) for each in progress(plan, len(plan), "passes")]
        beside = [
            self.kept.once(f"embeddings-{number:05d}.json", lambda each=each: self._embedding(each))
            for number, each in enumerate(progress(embeddings, len(embeddings), "candidates outside the blocks"))
        ]
        priced = self._priced(plan, embeddings)
        order = {layer.name: i for i, layer in enumerate(self.info.quantizable)}
        cells = [cell for result in results for cell in result["rows"]]
        cells.sort(key=lambda cell: (order[cell["row"]["layer"]], cell["choice"]))
        smoothing = self._smoothing()
        of_layers = [{**cell["row"], "price_by_window": _price_of(cell, priced)} for cell in cells]
        of_others = [
            {**each["row"], "price_by_window": priced["embeddings"][number] if priced else None}
            for number, each in enumerate(beside)
        ]
        rows = with_digest([*of_layers, *of_others], smoothing)
        cost = base + sum(result["block_forwards"] for result in (*results, *beside, *([priced] if priced else [])))
        return Measured(rows, smoothing, cost)

    def base(self) -> float:
        """Walk the model as it is, once, and return the block-forwards that took."""
        return self.kept.once(BASE, self._base)["block_forwards"]

    def result_of(self, made: Pass) -> dict[str, Any]:
        """Return the cells of a pass, {"choice": number, "row": ...}, and its block-forwards; it comes after `base`."""
        walk = WalkProgress(self.kept, _pass_name(made), self.keep_share)
        found = self.kept.once(f"{walk.name}.json", lambda: self._pass(made, walk))
        walk.forget()
        return found

    # ------------------------------------------------------------------------------------------ the model as it is

    def _base(self) -> dict[str, float]:
        """Keep the states that each block gets and those after the last; with the Fisher score also the gradients at them."""
        before = self.model.tokens_forwarded
        count = len(self.model.blocks)
        first = next((i for i in range(count, -1, -1) if self.kept.has(states_name(i))), 0)
        if first < count:
            start = load_states(self.kept, first, self.model.device) if self.kept.has(states_name(first)) else None
            self.model.run(self.tokens, self._keep_states, range(first, count), start)
        cost = self._cost(before)
        if self.measure.fisher:
            before = self.model.tokens_forwarded
            keep_gradients(self.model, self.tokens, self._head, self.kept)
            cost += (1 + BACKWARD) * self._cost(before)
        return {"block_forwards": cost}

    def _keep_states(self, block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        if block.index == 0:
            self.kept.save_tensor(states_name(0), hidden)
        output = as_block_runs(block, forward, 1)[0](hidden)
        self.kept.save_tensor(states_name(block.index + 1), output)
        return output

    def _cost(self, before: int) -> float:
        """Return the block-forwards over all tokens since a count of the walk."""
        return (self.model.tokens_forwarded - before) / self.tokens.numel()

    @cached_property
    def _head(self) -> StoredHead:
        return StoredHead.of(self.model.checkpoint)

    @cached_property
    def _reference(self) -> Reference:
        states = load_states(self.kept, len(self.model.blocks), self.model.device)
        return Reference(self.tokens, self._final(states), self._head, "")

    def _final(self, states: Tensor) -> Tensor:
        """Return the final hidden states, after the last norm, of what the last block gave."""
        return self.model.run(self.tokens, blocks=range(0), hidden=states)

    def _embedding(self, candidate: EmbeddingCandidate) -> dict[str, Any]:
        """Return the row of the embedding or the output matrix in a format, and its cost; KL is measured where anchors are."""
        if self.measure.anchors is None:
            return {"row": row_of(candidate), "block_forwards": 0.0}
        before = self.model.tokens_forwarded
        row = embedding_row(self.model, self.info, self._reference, candidate)
        return {"row": row, "block_forwards": self._cost(before)}

    # ------------------------------------------------------------------------------------------------------ prices

    def _priced(self, plan: Sequence[Pass], embeddings: Sequence[EmbeddingCandidate]) -> dict[str, Any] | None:
        """Return the prices of the passes' layers and of what stands outside the blocks; None where there are no draws."""
        if self.measure.draws is None:
            return None
        layers = list(dict.fromkeys(piece.layer for made in plan for piece in made.pieces))
        work = (self.settings.choices, self.measure.draws, self._scales)
        pricing = Pricing(
            *(self.model, self.info, self.tokens, self._head, self.kept, layers, *work),
            *(self.importance, self.measure.memory_limit, embeddings, self.measure.rounding),
        )
        walk = WalkProgress(self.kept, PRICES, self.keep_share)
        found = self.kept.once(f"{PRICES}.json", lambda: pricing.run(walk))
        walk.forget()
        return found

    def _scales(self, block: Block) -> dict[str, Tensor]:
        """Return the smoothing factors of a block's layers, as the passes have kept them."""
        if not self.settings.alphas:
            return {}
        groups = read_smoothing(self.kept.folder / _groups_name(block.index)).groups
        return {name: group.scale for group in groups for name in group.layers}

    # ------------------------------------------------------------------------------------------------------ a pass

    def _pass(self, made: Pass, walk: WalkProgress) -> dict[str, Any]:
        """Return the pass's cells, {choice, row}, and its cost, going on where the walk was stopped."""
        reached = walk.reached()
        before, saved = self.model.tokens_forwarded, self.saved + reached.facts.get("cost", 0.0)
        live = {_candidate(key): state.to(self.model.device) for key, state in reached.tensors.items()}
        cells: list[dict[str, Any]] = list(reached.facts.get("cells", ()))

        def cost() -> float:
            return self._cost(before) - (self.saved - saved)

        def visit(block: Block, hidden: Tensor, plain: Forward) -> Tensor:
            """Take the carried states through a block, add those that begin in it, and keep how far the pass is."""
            forward, step = as_block_runs(block, plain, batch_of(self.model, self.tokens))
            for key in live:
                live[key] = forward(live[key])
            if block.index in made.blocks:
                cells.extend(self._at_birth(block, forward, step, made.of_block(block.index), live))
            walk.keep(block.index + 1, lambda: (_named(live), {"cells": cells, "cost": cost()}))
            return hidden

        last = len(self.model.blocks) if made.carried else made.blocks.stop
        first = max(made.blocks.start, reached.block)
        start = load_states(self.kept, first, self.model.device)
        self.model.run(self.tokens, visit, range(first, last), start, differentiable=self.measure.fisher)
        for key in live:
            live[key] = self._final(live[key])
        head = self._head.read(self.model.device) if live else None
        found = kld_by_window(self._reference, list(live.values()), head) if live else ()
        by_window = dict(zip(live, found, strict=True))
        for cell in cells:
            key = (cell["row"]["layer"], cell["choice"])
            cell["row"]["by_window"] = by_window[key].tolist() if key in by_window else None
        return {"rows": cells, "block_forwards": cost()}

    def _at_birth(
        self,
        block: Block,
        forward: Forward,
        step: int,
        pieces: tuple[Piece, ...],
        live: dict[tuple[str, int], Tensor],
    ) -> Iterator[dict[str, Any]]:
        """Yield the cells of a block's pieces, and put their candidates' states into `live`."""
        hidden = load_states(self.kept, block.index, self.model.device)
        with observe_inputs(block, self.settings.tokens) as seen:
            output = forward(hidden)
        groups = self._groups(block, seen)
        gradients = self._gradients(block, forward, hidden, step)
        by_layer = {name: group for group in groups for name in group.layers}
        for piece in pieces:
            group = by_layer.get(piece.layer.name)
            scale = None if group is None else group.scale
            own = fitting_choices(self.settings.choices, piece.layer.shape[1])
            choices = [list(own)[i] for i in piece.rows]
            weight = layer_weight(block, piece.layer)
            wide = quantized_weights(weight, choices, scale, importance=self.importance.get(piece.layer.name))
            rows = layer_rows(piece.layer, weight, choices, wide, seen, scale, gradients)
            rows = with_asked(rows, [own[choice] for choice in choices])
            alpha = alpha_hill(spectrum(weight), FIT) if self.alphas is None else self.alphas[piece.layer.name]
            yield from ({"choice": i, "row": {**row, "alpha": alpha}} for i, row in zip(piece.rows, rows, strict=True))
            carried = [(c, w) for i, c, w in zip(piece.rows, choices, wide, strict=True) if i in piece.carried]
            before = self.model.tokens_forwarded
            states, cost = newborn(block, piece.layer, carried, forward, hidden, step, scale)
            self.saved += self._cost(before) - cost
            live.update({(piece.layer.name, i): state for i, state in zip(piece.carried, states, strict=True)})
        self._keep_groups(block, groups, forward, hidden, output)

    def _gradients(self, block: Block, forward: Forward, hidden: Tensor, step: int) -> OutputGradients | None:
        if not self.measure.fisher:
            return None
        above = self.kept.tensor(gradient_name(block.index + 1)).to(hidden.device)
        before = self.model.tokens_forwarded
        windows = gradient_of_outputs(block, forward, hidden, above, step, self.settings.tokens)
        self.saved -= BACKWARD * self._cost(before)
        return OutputGradients(windows, self.tokens[:, 1:].numel())

    # -------------------------------------------------------------------------------------------------- smoothing

    @cached_property
    def _layers(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.info.layers}

    def _groups(self, block: Block, seen: BlockInputs) -> tuple[SmoothGroup, ...]:
        """Return the smoothing groups of a block, as they were kept if an earlier pass has found them."""
        if self.kept.has(_groups_name(block.index)):
            return read_smoothing(self.kept.folder / _groups_name(block.index)).groups
        return tuple(best_groups(block, seen, self._layers, self.settings))

    def _keep_groups(
        self, block: Block, groups: tuple[SmoothGroup, ...], forward: Forward, hidden: Tensor, output: Tensor
    ) -> None:
        """Keep a block's groups, those folded into norms that may be. Comes last at a block: it changes the weights."""
        if self.settings.alphas and not self.kept.has(_groups_name(block.index)):
            again = lambda: forward(hidden[:1])  # noqa: E731
            checked = checked_groups(self.model, block, groups, self._layers, again, output[:1])
            write_smoothing(self.kept.folder / _groups_name(block.index), Smoothing(tuple(checked)))

    def _smoothing(self) -> Smoothing | None:
        """Return the groups of all blocks; None where nothing is to be smoothed."""
        if not self.settings.alphas:
            return None
        kept = (read_smoothing(self.kept.folder / _groups_name(i)) for i in range(len(self.model.blocks)))
        return Smoothing(tuple(group for smoothing in kept for group in smoothing.groups))


def _price_of(cell: Mapping[str, Any], priced: Mapping[str, Any] | None) -> list[float] | None:
    """Return the price of a cell's candidate in each window: of none, where no token reached the layer; None where nothing is priced."""
    if priced is None:
        return None
    of_layer = priced["prices"].get(cell["row"]["layer"])
    return [] if of_layer is None else of_layer[cell["choice"]]


def _groups_name(block: int) -> str:
    return f"groups-{block:04d}.smoothing.safetensors"


def _pass_name(made: Pass) -> str:
    pieces = [(piece.layer.name, piece.rows, piece.carried) for piece in made.pieces]
    return f"pass-{made.number:05d}-{digest_of({'pieces': pieces, 'blocks': repr(made.blocks)})[:12]}"


def _named(live: Mapping[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Return candidates' states under names for a file: the layer, and the number of the choice."""
    return {f"{layer}|{choice}": state for (layer, choice), state in live.items()}


def _candidate(name: str) -> tuple[str, int]:
    """Return the layer and the number of the choice of such a name."""
    layer, _, choice = name.rpartition("|")
    return layer, int(choice)
