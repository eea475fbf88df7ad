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


def any_path(text: str) -> Path:
    """The argparse type of a file or folder that has to be there."""
    return Path(text)


def output_path(text: str) -> Path:
    """The argparse type of a file or folder to write; one that is there is replaced."""
    return Path(text)


Fault = tuple[str, str] | None  # the code and what is wrong


def _any_path_problem(path: Path) -> Fault:
    return _input_folder_problem(path) if os.path.isdir(path) else _input_file_problem(path)


def _input_file_problem(path: Path) -> Fault:
    """Return what is wrong with a file to read; None when nothing is."""
    # Not Path.exists, which raises for a name that the system finds too long.
    if not os.path.exists(path):
        return "INPUT-MISSING", "does not exist"
    if os.path.isdir(path):
        return "INPUT-IS-FOLDER", "is a folder, not a file"
    return None if os.access(path, os.R_OK) else ("FILE-UNREADABLE", "cannot be read: permission denied")


def _input_folder_problem(path: Path) -> Fault:
    if os.path.isdir(path):
        return None
    return ("INPUT-NOT-FOLDER", "is not a folder") if os.path.exists(path) else ("INPUT-MISSING", "does not exist")


def _unwritable(folder: Path) -> Fault:
    """Return why nothing can be written under `folder`, which need not exist yet; None when it can be."""
    above = os.path.realpath(folder)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        return "OUTPUT-UNWRITABLE", f"cannot be written: {above} is a file"
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        return "OUTPUT-UNWRITABLE", f"cannot be written: {above}: {error.strerror}"
    return None


def _output_file_problem(path: Path) -> Fault:
    """Return what keeps a file from being written; None when nothing does."""
    if os.path.isdir(path):
        return "OUTPUT-UNWRITABLE", "cannot be written: it is a folder"
    return _unwritable(path.absolute().parent)


def _output_folder_problem(path: Path) -> Fault:
    return _unwritable(path.absolute())


def _new_folder_problem(path: Path) -> Fault:
    """Return what keeps a folder from being created; None when nothing does."""
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        return "OUTPUT-EXISTS", "exists already"
    return _unwritable(path.absolute().parent)


INPUTS: dict[Callable[[str], Path], Callable[[Path], Fault]] = {
    input_file: _input_file_problem,
    input_folder: _input_folder_problem,
    any_path: _any_path_problem,
}
OUTPUTS: dict[Callable[[str], Path], Callable[[Path], Fault]] = {
    output_file: _output_file_problem,
    output_folder: _output_folder_problem,
    new_folder: _new_folder_problem,
    output_path: _output_folder_problem,
}
HINTS = {
    output_file: "Choose another file",
    output_folder: "Choose another folder",
    new_folder: "Choose another folder",
    output_path: "Choose another place",
}


def _given(made: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[tuple[argparse.Action, Path]]:
    """Yield every flag that names files or folders, with each that it names."""
    for action in made._actions:
        held = getattr(args, action.dest, None)
        if action.type in (*INPUTS, *OUTPUTS) and held is not None:
            yield from ((action, path) for path in (held if isinstance(held, list) else [held]))


def inputs_of(made: argparse.ArgumentParser, args: argparse.Namespace) -> list[Path]:
    """Return the files that the flags say are read."""
    return [path for action, path in _given(made, args) if action.type in (input_file, any_path)]


def outputs_of(made: argparse.ArgumentParser, args: argparse.Namespace) -> list[Path]:
    """Return the files and folders that the flags say are written; none in a dry run."""
    written = [path for action, path in _given(made, args) if action.type in OUTPUTS]
    return [] if getattr(args, "dry_run", False) else written


def _problems(made: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[Problem]:
    written = outputs_of(made, args)
    for action, path in _given(made, args):
        flag, told = (*action.option_strings, action.dest)[0], action.help or ""
        if action.type in INPUTS and (fault := INPUTS[action.type](path)):
            yield Problem(fault[0], f"{flag} {path}", fault[1], f"Expected: {told}")
        if path in written and action.type in OUTPUTS and (fault := OUTPUTS[action.type](path)):
            yield Problem(fault[0], f"{flag} {path}", fault[1], HINTS[action.type])


def clashes(outputs: Iterable[Path], inputs: Iterable[Path], model: Path | None = None) -> Iterator[Problem]:
    """Yield a problem for every output that is an input too, an output twice, or would become a part of the model."""
    read, seen = {os.path.realpath(path) for path in inputs}, set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in read:
            yield Problem(
                "OUTPUT-IS-INPUT",
                str(path),
                "is also an input of this command and would be overwritten",
                "Choose another file",
            )
        if real in seen:
            yield Problem(
                "OUTPUT-TWICE", str(path), "is the path of two outputs of this command", "Give each output its own path"
            )
        if model is not None and _part_of_model(real, model):
            yield Problem(
                "OUTPUT-IN-MODEL",
                str(path),
                "would become part of the model or replace a part of it",
                "Choose a path outside the model's folder",
            )
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
