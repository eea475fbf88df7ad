"""Files passed between steps: byte-deterministic, written to a temporary path and then renamed."""

import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error

SCHEMA_VERSION = 1
GGUF_BEGIN = b"GGUF"
MADE_AGAIN = "Run the command that wrote it again"


WORK = ".bitplan-work-"
RANDOM = "[a-z0-9_]{8}"  # the random part of tempfile's names


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, renamed to it when the block ends without an error.

    A reader sees the old file or the complete new one, never a partial one. After an error the old file is unchanged.
    Temporary files of the same output that killed processes left behind are removed.
    """
    path = Path(path)
    begin, end = f".{path.name}.", f".tmp{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent, begin, end)
        aside, handle = _locked(lambda: _path_and_handle(*tempfile.mkstemp(prefix=begin, suffix=end, dir=path.parent)))
    except OSError as error:
        raise user_error(
            "OUTPUT-UNWRITABLE", path, f"cannot be written: {error.strerror}", "Choose a folder that you may write to"
        ) from None
    try:
        yield aside
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _path_and_handle(handle: int, name: str) -> tuple[Path, int]:
    return Path(name), handle


def _open_folder(parent: Path) -> tuple[Path, int]:
    while True:
        name = tempfile.mkdtemp(prefix=WORK, dir=parent)
        with suppress(FileNotFoundError):  # another process may have removed it as abandoned
            return Path(name), os.open(name, os.O_RDONLY)


def _locked(make: Callable[[], tuple[Path, int]]) -> tuple[Path, int]:
    """Return a temporary file or folder and its open handle, which locks it until it is closed or the process ends.

    The lock distinguishes it from one whose process was killed. On a file system without locks nothing is ever removed.
    """
    while True:
        path, handle = make()
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before it was locked, another process may have removed it as abandoned.
        if path.exists():
            return path, handle
        os.close(handle)


def _remove_abandoned(parent: Path, begin: str, end: str = "") -> None:
    """Remove temporary files and folders of killed processes: those with such names that no process has locked."""
    pattern = re.compile(re.escape(begin) + RANDOM + re.escape(end))
    for path in [Path(entry) for entry in os.scandir(parent) if pattern.fullmatch(entry.name)]:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder under `parent`, removed when the block ends. Folders left by killed processes are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, WORK)
    folder, handle = _locked(lambda: _open_folder(parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def write_folder_aside(output: Path) -> Iterator[Path]:
    """Yield a folder next to `output` that is renamed to it when the block ends without an error.

    Raises `UserError` when `output` exists and is not an empty folder: nothing is overwritten.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise user_error("OUTPUT-EXISTS", output, "exists already", "Choose another folder or remove this one")
    output = output.absolute()
    aside = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise user_error("OUTPUT-UNWRITABLE", output, what, "Choose a folder that you may write to") from None
    try:
        yield aside
        if output.exists():
            output.rmdir()
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def round_floats(value: Any, digits: int = 9) -> Any:
    """Return `value` with every float rounded to `digits` significant digits, so that files compare byte by byte."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): round_floats(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [round_floats(item, digits) for item in value]
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` with `schema_version`, sorted keys and 9 significant digits; NaN and infinity become null."""
    body = round_floats({"schema_version": SCHEMA_VERSION, **content})
    with write_aside(path) as aside:
        aside.write_text(json.dumps(body, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, hint: str = MADE_AGAIN) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `UserError` when it is missing, broken or not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise user_error("FILE-UNREADABLE", path, f"cannot be read: {error.strerror}", hint) from None
    except (ValueError, RecursionError) as error:
        raise user_error("FILE-NOT-JSON", path, f"is not JSON: {error}", hint) from None
    if not isinstance(content, dict):
        raise user_error("FILE-NOT-JSON-OBJECT", path, "is not a JSON object", hint)
    return content


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of some files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            digest.update(path.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_gguf(path: Path) -> None:
    """Raise `UserError` for a file that is missing or does not start with GGUF's magic bytes."""
    try:
        with open(path, "rb") as handle:
            begin = handle.read(len(GGUF_BEGIN))
    except OSError as error:
        raise user_error(
            "FILE-UNREADABLE", path, f"cannot be read: {error.strerror}", "Create it with scripts/export_gguf.py"
        ) from None
    if begin != GGUF_BEGIN:
        raise user_error(
            "GGUF-NOT-GGUF",
            path,
            "is not a GGUF file",
            "Create one with scripts/export_gguf.py or scripts/convert_gguf.py",
        )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], delimiter: str = "\t") -> None:
    """Write rows as TSV (or CSV with `delimiter=","`); floats with 9 significant digits, NaN and None empty."""
    with write_aside(path) as aside, open(aside, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def read_table(path: Path, required: Sequence[str] = (), delimiter: str = "\t") -> list[dict[str, str]]:
    """Return the rows of a table as dicts of strings. Raises `UserError` when it is not a table or lacks a required column."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter)
            rows, columns = list(reader), reader.fieldnames or []
    except OSError as error:
        raise user_error("FILE-UNREADABLE", path, f"cannot be read: {error.strerror}", MADE_AGAIN) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise user_error("TABLE-NOT-TABLE", path, f"is not a CSV or TSV table: {error}", MADE_AGAIN) from None
    missing = [column for column in required if column not in columns]
    if missing:
        names = ", ".join(columns)[:200] or "none"
        raise user_error(
            "TABLE-NO-COLUMN", path, f"has no column {', '.join(missing)}", f"Its columns are: {names}. {MADE_AGAIN}"
        )
    return rows
