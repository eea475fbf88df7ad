"""The help of commands: flags in groups by what they are for, required ones marked, defaults that say something, examples at the end."""

import argparse
from collections.abc import Iterable, Iterator

from bitplan.cli.inputs import INPUTS, OUTPUTS

# Flags by name; those that are not here are inputs or outputs by their type, or settings.
GROUPS = {
    "inputs": ("model", "revision", "calibration"),
    "outputs": (),
    "settings": (),
    "text": ("length", "sequences", "bos", "seqlen", "nsamples", "skip_tokens"),
    "machine": ("device", "dtype", "threads", "cores", "memory_limit"),
    "other": ("help", "verbose", "quiet", "dry_run"),
}
EXAMPLES = "\nFor example:\n"
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


class HelpFormatter(argparse.HelpFormatter):
    """Help that marks required flags and shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        words = action.help or ""
        if action.required and action.option_strings:
            return f"{words} (required)"
        shown = shown_default(action)
        return f"{words} (default: {shown})" if shown else words


def shown_default(action: argparse.Action) -> str:
    """Return a flag's default as it would be typed; "" where there is nothing to show."""
    default = action.default
    if isinstance(action, argparse.BooleanOptionalAction):
        return "on" if default else "off"
    if default is None or default is False or default == argparse.SUPPRESS or default == []:
        return ""
    words = default if isinstance(default, list) else [default]
    text = " ".join("=".join(map(str, word)) if isinstance(word, tuple) else str(word) for word in words)
    return text.replace("%", "%%")


def split_description(text: str | None) -> tuple[str, list[str]]:
    """Return what a command's docstring says, and the commands that it shows below the line `For example:`."""
    words, _, shown = (text or "").partition(EXAMPLES)
    return words.strip(), [line.strip() for line in shown.splitlines() if line.strip()]


def group_of(action: argparse.Action) -> str:
    """Return the group of a flag, one of `GROUPS`: by its name, or by what its type says of a file."""
    if action.dest in GROUP_OF:
        return GROUP_OF[action.dest]
    if action.type in OUTPUTS:
        return "outputs"
    return "inputs" if action.type in INPUTS or not action.option_strings else "settings"


def grouped(actions: Iterable[argparse.Action]) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Yield the groups that have flags, each with its flags: required ones first, otherwise in their order."""
    known = [action for action in actions if action.help != argparse.SUPPRESS]
    for group in GROUPS:
        inside = [action for action in known if group_of(action) == group]
        if inside:
            yield group, sorted(inside, key=lambda action: not action.required)


def help_text(made: argparse.ArgumentParser, examples: Iterable[str]) -> str:
    """Return a command's help: usage, description, flags by group, examples."""
    formatter = made._get_formatter()
    formatter.add_usage(made.usage, made._actions, made._mutually_exclusive_groups)
    formatter.add_text(made.description)
    for title, actions in grouped(made._actions):
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    shown = "".join(f"  {line}\n" for line in examples)
    return formatter.format_help() + (f"\nexamples:\n{shown}" if shown else "")
