"""What a plan is called."""

from pathlib import Path


def name_of_plan(path: Path) -> str:
    """Return a plan's name by its file: the file's own, or its folder's where every plan's file is called the same."""
    path = Path(path).absolute()
    return path.parent.name if path.stem in ("plan", "config") else path.stem
