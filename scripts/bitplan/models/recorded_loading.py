"""What a model loads, as model.json records it: asking transformers again takes longer than scoring a small file in its runtime."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitplan.models.loading import Loading

# The record of more would make model.json large, and reading it slow.
MOST_TENSORS = 5_000


def _key(folder: Path, stored: Iterable[str]) -> str:
    """Return what decides the loading: config.json, the names in the files, and transformers' version."""
    names = "\n".join(sorted(stored))
    return sha256(f"{version('transformers')}\n{(folder / 'config.json').read_text()}\n{names}".encode()).hexdigest()


def loading_record(folder: Path, stored: Iterable[str], loading: "Loading") -> dict[str, Any] | None:
    """Return what model.json records of a loading; None for a model of more than 5,000 tensors."""
    stored = list(stored)
    if len(stored) > MOST_TENSORS:
        return None
    return {"key": _key(folder, stored), **asdict(loading), "buffers": sorted(loading.buffers)}


def recorded_loading(record: Any, folder: Path, stored: Iterable[str]) -> "Loading | None":
    """Return the loading of a record; None where there is none, where an earlier version wrote it, or where config.json, the files' names or
    transformers have changed since."""
    if not isinstance(record, Mapping) or record.get("key") != _key(folder, stored):
        return None
    from bitplan.models.loading import Loading

    known = {name: value for name, value in record.items() if name != "key"}
    if known.keys() != {each.name for each in fields(Loading)}:
        return None
    needed = {name: (source, tuple(shape)) for name, (source, shape) in known["needed"].items()}
    changed = {"buffers": frozenset(known["buffers"]), "unused": tuple(known["unused"]), "needed": needed}
    return Loading(**known | changed)
