"""The calls of a block's layers while it runs: what each read and gave."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from bitplan.models.walk import Block


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer: its name, what it read, and what it gave before anything could change that in place."""

    name: str
    read: Tensor
    made: Tensor


@contextmanager
def calls_of(block: Block, names: Iterable[str]) -> Iterator[list[LayerCall]]:
    """Yield the calls of the named layers inside the context, in order; a call whose output is no tensor is not among them."""
    seen: list[LayerCall] = []

    def after(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        """Return a hook that notes a layer's calls under its name."""

        def note(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            seen.append(LayerCall(name, args[0], output))
            # Some blocks go on to change a layer's output in place.
            return output.clone()

        return note

    hooks = [block.layers[name].register_forward_hook(after(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
