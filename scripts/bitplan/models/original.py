"""The full-precision model as transformers loads it, of the same weights that a walk runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitplan.models.built import text_config
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.loading import WRAPPERS

ADAPTER = "adapter_config.json"


@contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """Yield the folder, or one of links to its files without an adapter's settings: where they are, transformers applies it."""
    if not (folder / ADAPTER).exists():
        yield folder
        return
    with TemporaryDirectory() as beside:
        for file in folder.iterdir():
            if file.name != ADAPTER:
                (Path(beside) / file.name).symlink_to(file.resolve())
        yield Path(beside)


@contextmanager
def original_source(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder that transformers loads a checkpoint from, and arguments of `from_pretrained` for AutoModelForCausalLM.

    Names lose what wrappers put before them, which transformers would not find in the model and replace by random values.
    """
    wrapped = any(name != key for name, key in Checkpoint(folder).loading.names.items())
    named = {"config": text_config(folder), "key_mapping": dict(WRAPPERS)} if wrapped else {}
    with _without_adapter(folder) as source:
        yield source, {"trust_remote_code": False, **named}
