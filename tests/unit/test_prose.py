"""Docs, docstrings and comments are plain technical English: phrases that readers stumble over do not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "formats", "models", "statistics", "reference", "evaluate", "demo", "plans", "rounding")
# Folders and files whose prose is checked; extend this list when a folder has been revised.
REVISED = (
    "docs",
    *(f"{place}/{folder}" for place in ("scripts/bitplan", "tests/unit") for folder in FOLDERS),
)
NOT_YET = (
    "scripts/bitplan/models/hub",
    "tests/unit/models/test_hub.py",
    "tests/unit/models/test_hub_cache.py",
    "tests/unit/models/hub_runs.py",
)
# Regular expressions, matched without regard to case.
PHRASES = (
    r"\banew\b",
    r"\bafresh\b",
    r"\bby lot\b",
    r"\bat birth\b",
    r"\bnewborn\b",
    r"\b(goes|go|going|gone|went) on (with|after|from|where|there|without)\b",
    r"\b(made|make|makes) again\b",
    r"\b(is|are) told\b",
    r"(?<!there )\b(is|are) no (?!longer|more\b|less|larger|smaller|better|worse)",
    r"\bof (its|their|his|one's|your) own\b",
    r"\b(stands?|stood|lies|put) beside\b",
    r"\bwritten aside\b",
    r"\bwhat stands\b",
    r"\bsound checkpoint\b",
    r"\bmend(ed|s)?\b",
    r"\b(is|are) behind\b",
    r"\bspeaks\b",
    r"\bthe teacher\b",
    r"\bdamages?\b",
    r"\bworked out\b",
    r"\bweighs?\b",
)


def paths() -> list[Path]:
    """The pages and modules that are checked."""
    files = [path for folder in REVISED for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py")]
    excluded = [ROOT / folder for folder in NOT_YET]
    return sorted(path for path in files if not any(path.is_relative_to(folder) for folder in excluded))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of a page's lines outside code blocks, or of a module's docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        masked = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), source, flags=re.DOTALL)
        yield from enumerate(masked.splitlines(), start=1)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", paths(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_has_no_phrase_that_readers_stumble_over(path):
    wrong = [
        f"{path.name}:{line}: {match[0]!r} in {text.strip()[:100]!r}"
        for line, text in prose(path)
        for phrase in PHRASES
        for match in re.finditer(phrase, text, flags=re.IGNORECASE)
    ]
    assert not wrong, "\n".join(wrong)
