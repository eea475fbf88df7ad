"""What a checkpoint's folder says of where it comes from: its id on the model hub and its license."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bitplan.core.errors import UserError
from bitplan.core.files import read_json
from bitplan.models.checkpoint_files import CARD, RECORD
from bitplan.models.hub.ids import looks_like_id


@dataclass(frozen=True)
class Source:
    """A model: the name of its folder, its id on the model hub and the commit ("" where not known), its license as its own files name it."""

    name: str
    id: str = ""
    commit: str = ""
    license: str = ""


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML between two lines of dashes at the start of a Markdown file; nothing where there is none that is a mapping."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return {}
    end = [line.strip() for line in lines[1:]].index("---") + 1
    try:
        content = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _json(path: Path) -> Mapping[str, Any]:
    """Return the object in a file; nothing where there is none."""
    try:
        return read_json(path)
    except UserError:
        return {}


def _card(folder: Path) -> Mapping[str, Any]:
    path = folder / CARD
    return front_matter(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def source_of(folder: Path) -> Source:
    """Return where a checkpoint comes from: its download's record, else the name in its config.json; its license from its card, else that file."""
    record, config = _json(folder / RECORD), _json(folder / "config.json")
    named = _word(config.get("_name_or_path"))
    found = _word(record.get("id")) or (named if looks_like_id(named) else "")
    license = _word(_card(folder).get("license")) or _word(config.get("license"))
    return Source(folder.resolve().name, found, _word(record.get("commit")), license)
