"""The full-precision model as transformers loads it, with the same weights as in a walk."""

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
    """Yield the folder, or one with links to all files but the adapter's settings, which make transformers apply the adapter."""
    if not (folder / ADAPTER).exists():
        yield folder
        return
    with TemporaryDirectory() as links:
        for file in folder.iterdir():
            if file.name != ADAPTER:
                (Path(links) / file.name).symlink_to(file.resolve())
        yield Path(links)


@contextmanager
def original_source(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder to load a checkpoint from, and the arguments of `AutoModelForCausalLM.from_pretrained`.

    The arguments remove wrappers' prefixes from names: transformers would fill parameters that it cannot find with random values.
    """
    wrapped = any(name != key for name, key in Checkpoint(folder).loading.names.items())
    options = {"config": text_config(folder), "key_mapping": dict(WRAPPERS)} if wrapped else {}
    with _without_adapter(folder) as source:
        yield source, {"trust_remote_code": False, **options}
