"""Flags that name files and folders: declared by their argparse type, checked together before a command does anything."""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bitplan.core.errors import Problem, UserError
from bitplan.models.checkpoint_files import match_names


def input_file(text: str) -> Path:
    """The argparse type of a file that has to be there."""
    return Path(text)


def input_folder(text: str) -> Path:
    """The argparse type of a folder that has to be there."""
    return Path(text)


def output_file(text: str) -> Path:
    """The argparse type of a file to write; one that is there is replaced."""
    return Path(text)


def output_folder(text: str) -> Path:
    """The argparse type of a folder to write into; it may be there."""
    return Path(text)


def new_folder(text: str) -> Path:
    """The argparse type of a folder to make: nothing is there yet, or an empty folder."""
    return Path(text)


def _input_file_problem(path: Path) -> str:
    """Return what is wrong with a file to read; "" when nothing is."""
    # Not Path.exists, which raises for a name that the system finds too long.
    if not os.path.exists(path):
        return "does not exist"
    if os.path.isdir(path):
        return "is a folder, not a file"
    return "" if os.access(path, os.R_OK) else "may not be read"


def _input_folder_problem(path: Path) -> str:
    return "" if os.path.isdir(path) else "is not a folder" if os.path.exists(path) else "does not exist"


def _unwritable(folder: Path) -> str:
    """Return why nothing can be written under `folder`, which need not be there yet; "" when it can be."""
    above = os.path.realpath(folder)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        return f"cannot be written: {above} is a file"
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        return f"cannot be written: {above}: {error.strerror}"
    return ""


def _output_file_problem(path: Path) -> str:
    """Return what keeps a file from being written; "" when nothing does."""
    return "cannot be written: it is a folder" if os.path.isdir(path) else _unwritable(path.absolute().parent)


def _output_folder_problem(path: Path) -> str:
    return _unwritable(path.absolute())


def _new_folder_problem(path: Path) -> str:
    """Return what keeps a folder from being made; "" when nothing does."""
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        return "exists already"
    return _unwritable(path.absolute().parent)


INPUTS: dict[Callable[[str], Path], Callable[[Path], str]] = {
    input_file: _input_file_problem,
    input_folder: _input_folder_problem,
}
OUTPUTS: dict[Callable[[str], Path], Callable[[Path], str]] = {
    output_file: _output_file_problem,
    output_folder: _output_folder_problem,
    new_folder: _new_folder_problem,
}
HINTS = {
    output_file: "Choose another file",
    output_folder: "Choose another folder",
    new_folder: "Choose another folder",
}


def _given(made: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[tuple[argparse.Action, Path]]:
    """Yield every flag that names files or folders, with each that it names."""
    for action in made._actions:
        held = getattr(args, action.dest, None)
        if action.type in (*INPUTS, *OUTPUTS) and held is not None:
            yield from ((action, path) for path in (held if isinstance(held, list) else [held]))


def inputs_of(made: argparse.ArgumentParser, args: argparse.Namespace) -> list[Path]:
    """Return the files that the flags say are read."""
    return [path for action, path in _given(made, args) if action.type is input_file]


def outputs_of(made: argparse.ArgumentParser, args: argparse.Namespace) -> list[Path]:
    """Return the files and folders that the flags say are written; none in a dry run."""
    written = [path for action, path in _given(made, args) if action.type in OUTPUTS]
    return [] if getattr(args, "dry_run", False) else written


def _problems(made: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[Problem]:
    written = outputs_of(made, args)
    for action, path in _given(made, args):
        flag, told = action.option_strings[0], action.help or ""
        if action.type in INPUTS and (what := INPUTS[action.type](path)):
            yield Problem(f"{flag} {path}", what, f"Give: {told}")
        if path in written and action.type in OUTPUTS and (what := OUTPUTS[action.type](path)):
            yield Problem(f"{flag} {path}", what, HINTS[action.type])


def clashes(outputs: Iterable[Path], inputs: Iterable[Path], model: Path | None = None) -> Iterator[Problem]:
    """Yield a problem for every output that is an input too, an output twice, or would become a part of the model."""
    read, seen = {os.path.realpath(path) for path in inputs}, set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in read:
            yield Problem(
                str(path), "is read by the same command, and writing it would destroy it", "Choose another file"
            )
        if real in seen:
            yield Problem(str(path), "is to be written twice by the same command", "Give each output a name of its own")
        if model is not None and _part_of_model(real, model):
            yield Problem(str(path), "would be a part of the model, or replace one", "Write outside the model's folder")
        seen.add(real)


def refuse(problems: Iterable[Problem]) -> None:
    """Raise `UserError` when there are problems."""
    held = tuple(problems)
    if held:
        raise UserError(held)


def _part_of_model(path: str, model: Path) -> bool:
    folder, name = os.path.split(path)
    inside = folder == os.path.realpath(model) and bool(match_names([name]))
    return path == os.path.realpath(model) or inside


def check_files(made: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise `UserError` with every input that is not there and every output that cannot or must not be written."""
    model = getattr(args, "model", None)
    found = clashes(outputs_of(made, args), inputs_of(made, args), model if isinstance(model, Path) else None)
    refuse([*_problems(made, args), *found])
