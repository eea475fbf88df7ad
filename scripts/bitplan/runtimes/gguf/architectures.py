"""Which architectures llama.cpp's converter knows: read from its table, without running it."""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = "TEXT_MODEL_MAP"


def converter_table() -> Path:
    """Return where the converter of this environment has its table of architectures."""
    return Path(sys.prefix) / "share" / "llama.cpp" / "conversion" / "__init__.py"


def known_architectures(table: Path) -> frozenset[str]:
    """Return the names of architectures in the converter's table; none where it is not there or has another form."""
    if not table.is_file():
        return frozenset()
    for node in ast.parse(table.read_text(encoding="utf-8")).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(getattr(target, "id", "") == TABLE for target in targets) and isinstance(node.value, ast.Dict):
            return frozenset(key.value for key in node.value.keys if isinstance(key, ast.Constant))
    return frozenset()


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the architecture that the converter looks for: the text model's own, else that of the whole; "" where config.json names none."""
    inner = config.get("text_config")
    for part in (inner if isinstance(inner, Mapping) else {}, config):
        names = part.get("architectures")
        if isinstance(names, list) and names:
            return str(names[0])
    return ""


def why_unsupported(config: Mapping[str, Any], table: Path | None = None) -> str:
    """Return why the converter cannot convert a model with this config.json; "" where it can, or its table is not here to tell."""
    known, name = known_architectures(table or converter_table()), architecture_of(config)
    return (
        f"llama.cpp's converter does not know the architecture {name}" if known and name and name not in known else ""
    )
