"""Which layers are quantized alone in which formats to measure KL, and how many are carried through the model together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitplan.core.errors import user_error
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.rounding.layer import NEAREST
from bitplan.sensitivity.local_errors import Choice, fitting_choices

# Besides the candidates: what a block gets and gives in full precision, what it is giving for a candidate, the reference's.
OTHER_STATES = 4
# Where blocks are done faster than their states are written, a pass is what a kill can lose: there are at least so many, where there is
# enough to measure.
FEWEST_PASSES = 8
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured: `anchors` "1", "2" or "all" (None: nothing), within `memory_limit` bytes of hidden states, for share
    `shard` (number from 1, of how many), whether the Fisher score is computed, and in which formats the embedding and the output
    matrix are measured besides: with the first shard. With `draws` every candidate is priced from so many draws of labels for each window, with weights
    rounded as `rounding` says: to nearest, or with error feedback.
    """

    anchors: str | None = None
    memory_limit: int = 4 * 10**9
    shard: tuple[int, int] = (1, 1)
    fisher: bool = False
    embeddings: tuple[str, ...] = ()
    draws: int | None = None
    rounding: str = NEAREST

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for beyond what one walk over all layers gives."""
        return self.anchors is None and self.draws is None and not self.fisher and self.shard == (1, 1)


@dataclass(frozen=True)
class Piece:
    """A layer and its own choices, by number, whose rows are made when the pass reaches it; of those in `carried` KL is measured."""

    layer: Layer
    rows: tuple[int, ...]
    carried: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """Pieces that are done together, and the blocks in which they and nothing else are looked at."""

    number: int
    pieces: tuple[Piece, ...]
    blocks: range

    @property
    def carried(self) -> int:
        """Number of candidates that are carried to the last block."""
        return sum(len(piece.carried) for piece in self.pieces)

    def of_block(self, block: int) -> tuple[Piece, ...]:
        """Return the pieces of a block."""
        return tuple(piece for piece in self.pieces if piece.layer.block == block)


def _bits(choice: Choice) -> float:
    return FORMATS[choice.wq].bits_per_value(choice.group_size)


def changes(choice: Choice) -> bool:
    """Return whether a choice leaves 16 bits at all; otherwise KL is 0 without measuring."""
    return choice.wq != UNQUANTIZED or choice.inputs_change


def _palette(choices: Sequence[Choice]) -> list[int]:
    """Return the numbers of the choices that change weights alone, by bits per value."""
    found = (i for i, choice in enumerate(choices) if changes(choice) and not choice.inputs_change)
    return sorted(found, key=lambda i: _bits(choices[i]))


def anchor_choices(choices: Sequence[Choice], anchors: str | None) -> tuple[int, ...]:
    """Return the numbers of the choices that are measured.

    Of the palette, by bits per value: "1" the one in the middle, "2" the first and the last; "all": every choice, those with
    activation formats too. Raises `UserError` when there is no palette to choose from.
    """
    if anchors is None:
        return ()
    if anchors == "all":
        return tuple(i for i, choice in enumerate(choices) if changes(choice))
    palette = _palette(choices)
    if not palette:
        raise user_error(
            "SENSITIVITY-NO-PALETTE",
            "--anchors",
            "needs weight formats to choose from",
            "Give --palette, or --anchors all",
        )
    chosen = {palette[(len(palette) - 1) // 2]} if anchors == "1" else {palette[0], palette[-1]}
    return tuple(sorted(chosen))


def wanted_pieces(layers: Sequence[Layer], choices: Sequence[Choice], anchors: str | None) -> list[Piece]:
    """Return for each layer the numbers of its own candidates (`fitting_choices`), and of those whose KL is measured.

    A layer whose rows fit no format of the palette has no anchor. Raises `UserError` when there is no palette to choose anchors from.
    """
    anchor_choices(choices, anchors)
    own = {columns: list(fitting_choices(choices, columns)) for columns in {layer.shape[1] for layer in layers}}
    carried = {
        columns: anchor_choices(found, anchors if anchors == "all" or _palette(found) else None)
        for columns, found in own.items()
    }
    return [Piece(layer, tuple(range(len(own[layer.shape[1]]))), carried[layer.shape[1]]) for layer in layers]


def share_of(layers: Sequence[Layer], shard: tuple[int, int]) -> list[Layer]:
    """Return every n-th layer, from the i-th, of shard (i, n): early layers cost more than late ones, so shares are alike."""
    number, count = shard
    if count > len(layers):
        what = f"{count} shards of {len(layers)} layers leave some shards empty"
        raise user_error("SENSITIVITY-TOO-MANY-SHARDS", "--shard", what, f"Use {len(layers)} or fewer")
    return list(layers[number - 1 :: count])


def most_carried(memory_limit: int, state_bytes: int, candidates: int) -> int:
    """Return how many of the candidates a pass carries, of hidden states of `state_bytes` each, within a limit in bytes.

    Raises `UserError` when the memory limit holds not even one.
    """
    room = memory_limit // state_bytes - OTHER_STATES
    if room < 1:
        least = -(-(OTHER_STATES + 1) * state_bytes // 10**6)
        what = f"the hidden states of one candidate and of the reference take {least} MB"
        raise user_error("SENSITIVITY-MEMORY", "--memory-limit", what, f"Use {least}MB or more, or fewer --sequences")
    return min(room, max(1, -(-candidates // FEWEST_PASSES)))


def check_draws(memory_limit: int, values: int, draws: int) -> None:
    """Raise `UserError` when the memory limit does not hold the gradients of so many draws, each of `values` in float32."""
    least = -(-GRADIENT_BYTES * values * draws // 10**6)
    if least * 10**6 > memory_limit:
        what = f"the gradients of {draws} draws take {least} MB"
        raise user_error(
            "SENSITIVITY-MEMORY", "--memory-limit", what, f"Use {least}MB or more, or fewer --draws or --sequences"
        )


def _pieces(wanted: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """Yield the pieces of each pass, of every layer's candidates in model order."""
    measured = any(piece.carried for piece in wanted)
    held: list[Piece] = []
    room = most
    for layer, numbers, carried in ((piece.layer, piece.rows, piece.carried) for piece in wanted):
        rows, left = tuple(i for i in numbers if i not in carried), list(carried)
        while rows or left:
            block_ends = not measured and held and held[-1].layer.block != layer.block
            if held and (block_ends or (left and room == 0)):
                yield held
                held, room = [], most
            taken, left = tuple(left[:room]), left[room:]
            held.append(Piece(layer, tuple(sorted((*rows, *taken))), taken))
            rows, room = (), room - len(taken)
    if held:
        yield held


def passes(wanted: Sequence[Piece], most: int, blocks: int) -> list[Pass]:
    """Return the passes over a model of so many blocks: each goes on where the last one ended, and every block is in one.

    `wanted` has the candidates of every layer; a pass carries at most `most` of them.
    """
    found, start = list(_pieces(wanted, most)), 0
    made = []
    for number, pieces in enumerate(found):
        end = blocks if number == len(found) - 1 else pieces[-1].layer.block + 1
        made.append(Pass(number, tuple(pieces), range(min(start, pieces[0].layer.block), end)))
        start = end
    return made
