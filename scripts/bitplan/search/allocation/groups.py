"""Groups of layers that have to share a format: by patterns, from a table, or the fusion groups of a model.json."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.core.files import read_json, read_table
from bitplan.models.layer_patterns import nearest_layers
from bitplan.search.allocation.patterns import matched_parts, told_apart

SUFFIX = ".weight"
FORMS = "Give a table with the columns layer and group, a model.json, or patterns as 'blk.*.attn_q.weight,blk.*.attn_k.weight'"


def group_file(word: str) -> Path | None:
    """Return the file that a word of `--groups` names; None for patterns."""
    return Path(word) if os.path.exists(word) or not set(word) & set("*?[,") else None


def layer_groups(words: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each layer, (L,), "" for one that stands alone.

    Each word is a file or a list of patterns parted by commas; layers for which `*` stands for the same in different
    patterns of a list are a group; `**` and `[...]` match without telling apart. Raises `UserError` with every pattern or
    name that is no layer's, and every layer in two groups.
    """
    groups, problems = [""] * len(layers), []
    for word in words:
        path = group_file(word)
        found, wrong = _from_patterns(word, layers) if path is None else _from_file(path, layers)
        problems += wrong
        twice = [place for place, group in found.items() if groups[place] not in ("", group)]
        if twice:
            what = f"is in two groups, with {groups[twice[0]]} and with {found[twice[0]]}"
            problems.append(
                Problem(
                    "GROUPS-LAYER-TWICE", f"--groups {word}: {layers[twice[0]]}", what, "Put each layer into one group"
                )
            )
        for place, group in found.items():
            groups[place] = groups[place] or group
    if problems:
        raise UserError(problems)
    return tuple(groups)


def _from_patterns(word: str, layers: Sequence[str]) -> tuple[dict[int, str], list[Problem]]:
    """Return the group of each layer that matches, named by its first layer."""
    patterns = [part.strip() for part in word.split(",") if part.strip()]
    problems, firsts, groups = [], {}, {}
    if len({told_apart(pattern) for pattern in patterns}) > 1:
        what = "the patterns have different numbers of *, so no layers would share a format"
        problems.append(
            Problem(
                "GROUPS-UNEQUAL-PATTERNS",
                f"--groups {word}",
                what,
                "Use the same number of * in each; ** and [...] do not count",
            )
        )
    for pattern in patterns:
        found = matched_parts(pattern, layers)
        if not found:
            problems.append(
                Problem("GROUPS-NO-MATCH", "--groups", f"{pattern!r} matches no layer", nearest_layers(pattern, layers))
            )
        for place, parts in found.items():
            groups[place] = firsts.setdefault(parts, layers[place])
    return groups, problems


def _from_file(path: Path, layers: Sequence[str]) -> tuple[dict[int, str], list[Problem]]:
    if not path.is_file():
        raise user_error("GROUPS-INVALID", f"--groups {path}", "is neither a file nor patterns", FORMS)
    return _of_model(path, layers) if path.suffix == ".json" else _of_table(path, layers)


def _of_model(path: Path, layers: Sequence[str]) -> tuple[dict[int, str], list[Problem]]:
    """Return the fusion groups of a model.json. Its names have no `.weight`, a table's may have it."""
    try:
        held = {layer["name"]: layer["fusion_group"] for layer in read_json(path)["layers"]}
    except (KeyError, TypeError):
        hint = "Create one with scripts/describe_model.py"
        raise user_error("MODEL-INFO-INVALID", f"--groups {path}", "is not a model.json", hint) from None
    found = {place: held.get(name, held.get(name.removesuffix(SUFFIX))) for place, name in enumerate(layers)}
    known = {place: group for place, group in found.items() if group is not None}
    problems = (
        []
        if known
        else [Problem("GROUPS-NO-MATCH", f"--groups {path}", "has none of the table's layers", _example(held, layers))]
    )
    return {place: group for place, group in known.items() if group}, problems


def _example(held: Mapping[str, str], layers: Sequence[str]) -> str:
    return f"It names layers as {next(iter(held), 'none')!r}, the table as {layers[0]!r}"


def _of_table(path: Path, layers: Sequence[str]) -> tuple[dict[int, str], list[Problem]]:
    with open(path, encoding="utf-8", errors="replace") as handle:
        mark = "\t" if "\t" in handle.readline() else ","
    rows = read_table(path, ("layer", "group"), mark)
    places = {name: place for place, name in enumerate(layers)}
    problems = list(_table_problems(path, rows, places, layers))
    return {places[row["layer"]]: row["group"] for row in rows if row["layer"] in places and row["group"]}, problems


def _table_problems(
    path: Path, rows: Iterable[Mapping[str, str]], places: Mapping[str, int], layers: Sequence[str]
) -> Iterable[Problem]:
    groups: dict[str, str] = {}
    for row in rows:
        layer, group = row["layer"], row["group"]
        if layer not in places:
            yield Problem(
                "GROUPS-NO-MATCH",
                f"--groups {path}",
                f"{layer!r} is not a layer of the table",
                nearest_layers(str(layer), layers),
            )
        elif groups.setdefault(layer, group) != group:
            what = f"is in two groups, {groups[layer]} and {group}"
            yield Problem("GROUPS-LAYER-TWICE", f"--groups {path}: {layer}", what, "Put each layer into one group")
