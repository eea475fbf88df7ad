"""A YAML file whose keys are given once each."""

from pathlib import Path
from typing import Any

import yaml

from bitplan.core.errors import user_error


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which YAML would silently keep the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            mark = key_node.start_mark
            hint = f"It is given first in line {seen[key]}; remove one of them"
            raise user_error("SETTINGS-KEY-TWICE", f"{mark.name}:{mark.line + 1}", f"key {key!r} is given twice", hint)
        seen[key] = key_node.start_mark.line + 1
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def check_duplicate_keys(path: Path) -> None:
    """Raise `UserError` when a YAML file gives a key twice or is no YAML."""
    try:
        with open(path, encoding="utf-8") as handle:
            yaml.load(handle, _UniqueKeys)
    except yaml.YAMLError as error:
        what = f"is not YAML: {' '.join(str(error).split())}"
        raise user_error("SETTINGS-NOT-YAML", path, what, "Correct the file") from None
