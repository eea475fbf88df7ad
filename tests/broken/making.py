"""How broken things are made: a function for each, registered under its name, and the shelf that they are taken from."""

import json
from collections.abc import Callable
from pathlib import Path

WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj"
BUILDERS: dict[str, Callable] = {}


def builder(function: Callable) -> Callable:
    """Register a function (shelf, target) that makes the thing of its name at `target`, or returns where else it is."""
    BUILDERS[function.__name__] = function
    return function


class Shelf(dict):
    """Things by name, for `str.format_map`: those put in by hand, and those that a registered function makes."""

    def __init__(self, folder: Path, **things: Path) -> None:
        super().__init__(things)
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / name
        self[name] = BUILDERS[name](self, self[name]) or self[name]
        return self[name]


def written(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
