"""The page of all commands' flags, written from their parsers: docs/reference/flags.md."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from bitplan.cli.help import grouped, shown_default
from bitplan.config.flag_types import AllCores
from bitplan.core.places import workflow_folder

HEAD = """# Flags of every command

Written from the commands' own parsers by `scripts/write_config.py --fix`; each command prints the same with `--help`. Flags are accepted with dashes and with underscores. [Commands](../commands.md) says what each is
for, [settings](settings.md) has the keys of config.yaml. Every command has `--help` and `--verbose`, which are not repeated here.
"""
EVERYWHERE = ("help", "verbose")


def plain(text: str) -> str:
    """Return text that a cell of a Markdown table shows as it is."""
    return " ".join(text.replace("%%", "%").split()).replace("|", "/").replace("*", r"\*").replace("<", "&lt;")


def _values(action: argparse.Action) -> str:
    """Return how a flag's values are written after it: their name, or the words to choose from."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ""
    name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    one = str(name).replace("|", "/")
    return {"+": f" {one} ...", "?": f" [{one}]"}.get(str(action.nargs), f" {one}")


def _default(action: argparse.Action) -> str:
    """Return a flag's default as it is on every machine, or that the flag is required."""
    if action.required:
        return "required"
    if isinstance(action.default, AllCores):
        return "all cores"
    if isinstance(action.default, Path) and action.default.is_relative_to(workflow_folder()):
        return action.default.relative_to(workflow_folder()).as_posix()
    return plain(shown_default(action))


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group, actions in grouped(parser._actions):
        for action in actions:
            if action.dest not in EVERYWHERE:
                names = " ".join(action.option_strings[-1:]) or action.dest
                flag = names + (_values(action) if action.option_strings else "")
                yield f"| `{flag}` | {plain(action.help or '')} | {_default(action)} | {group} |"


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """Return a command's section: what it does, its examples, a table of its flags."""
    parts = [f"## {name}", parser.description or ""]
    if examples := getattr(parser, "examples", []):
        parts.append("\n".join(f"    {line}" for line in examples))
    if rows := [*_rows(parser)]:
        parts.append("\n".join(("| flag | meaning | default | group |", "|---|---|---|---|", *rows)))
    return "\n\n".join(filter(None, parts))


def flags_page(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return docs/reference/flags.md: a section for each command, by its name."""
    return "\n\n".join((HEAD.rstrip(), *(section(name, parser) for name, parser in parsers.items()))) + "\n"
