"""What is wrong with a configuration, in words: the key, what is wrong, what to do."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from bitplan.core.errors import Problem
from bitplan.search.registry import METHODS

# What YAML reads as truth values, as it was probably written.
BOOLEANS = {"False": "no", "True": "yes"}
# Codes of what pydantic finds; every other kind is SETTINGS-INVALID.
CODES = {
    "missing": "SETTINGS-MISSING",
    "literal_error": "SETTINGS-NOT-A-CHOICE",
    "no_recipe": "SETTINGS-NOT-A-CHOICE",
    "greater_than": "SETTINGS-OUT-OF-RANGE",
    "greater_than_equal": "SETTINGS-OUT-OF-RANGE",
    "less_than": "SETTINGS-OUT-OF-RANGE",
    "less_than_equal": "SETTINGS-OUT-OF-RANGE",
    "finite_number": "SETTINGS-OUT-OF-RANGE",
}
# Keys of earlier versions, by the section and the key, and their names now.
RENAMED = {
    ("", "selection"): "validation",
    ("sensitivity", "outside"): "embeddings",
    ("plans", "race"): "refine",
    ("studies", "race"): "refine",
    ("models", "gguf"): "runtimes, a list: [gguf] for true, [] for false",
}


def _inside(kind: Any, key: Any) -> Any:
    """Return the type of what stands at a key of a section, of a mapping, or of the union of plans (where the key is the method)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields[key].annotation
    return get_args(kind)[1] if get_origin(kind) is dict else METHODS[key].settings


def _keys_at(location: tuple, model: type[BaseModel]) -> list[str]:
    """Return the keys that are valid where an unknown key stands."""
    kind: Any = model
    for key in location[:-1]:
        kind = _inside(kind, key)
    return list(kind.model_fields)


def _unknown_key(shown: str, location: tuple, model: type[BaseModel]) -> Problem:
    """Return the problem of an unknown key: its new name, a similar one, or those that are known."""
    key = str(location[-1])
    section = str(location[0]) if len(location) > 1 else ""
    if renamed := RENAMED.get((section, key)):
        return Problem("SETTINGS-RENAMED", shown, "was renamed", f"It is now {renamed}")
    known = _keys_at(location, model)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(known)}"
    return Problem("SETTINGS-UNKNOWN-KEY", shown, "unknown key", hint)


def problem_of(error: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    """Return an error of pydantic's about the settings `model` as a problem."""
    location = error["loc"] or ("configuration",)
    shown = ".".join(str(part) for i, part in enumerate(location) if not (location[0] == "plans" and i == 2))
    if error["type"] == "extra_forbidden":
        return _unknown_key(shown, location, model)
    if error["type"] == "union_tag_not_found":
        return Problem("SETTINGS-NO-METHOD", shown, "has no method", f"Add one of: {', '.join(METHODS)}")
    if location[-1] == "[key]" and error["type"] == "string_type":
        name = BOOLEANS.get(str(error["input"]), str(error["input"]))
        what = f"YAML reads the name {name} as a value of type {type(error['input']).__name__}"
        return Problem("SETTINGS-NAME-NOT-TEXT", str(location[0]), what, f'Put the name in quotes: "{name}"')
    what = error["msg"].removeprefix("Value error, ")
    hint = "Add it" if error["type"] == "missing" else "config.yaml describes every setting"
    given = "" if error["type"] == "missing" or isinstance(error["input"], Mapping) else f" (it is {error['input']!r})"
    return Problem(CODES.get(error["type"], "SETTINGS-INVALID"), shown, what[0].lower() + what[1:] + given, hint)
