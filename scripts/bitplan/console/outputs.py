"""What the `bitplan` program writes for a user: a file or a folder of a runtime, and the model card with it."""

import shutil
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside, write_folder_aside
from bitplan.models.checkpoint_files import CARD
from bitplan.runtimes.runtime import Runtime


def check_output(runtime: Runtime, output: Path) -> None:
    """Raise `UserError` for a name that is not one of the runtime's files, for a folder in its place, and where a runtime's folder is not empty."""
    if runtime.is_folder:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            hint = "Choose another folder or remove this one"
            raise user_error("OUTPUT-EXISTS", f"-o {output}", f"exists already, and {runtime.name} is a folder", hint)
        return
    end = Path(runtime.artifact).suffix
    if output.is_dir():
        raise user_error(
            "OUTPUT-UNWRITABLE", f"-o {output}", "is a folder", f"Give a file, as {output / f'model{end}'}"
        )
    if output.suffix != end:
        what = f"is no name of a file for {runtime.name}, which ends in {end}"
        raise user_error("OUTPUT-NAME", f"-o {output}", what, f"Give {output.with_suffix(end)}, or another --runtime")


def copy_artifact(runtime: Runtime, source: Path, output: Path) -> None:
    """Copy what a runtime loads to where the user wants it. Raises `UserError` for a folder that is there and not empty."""
    if runtime.is_folder:
        with write_folder_aside(output) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
        return
    with write_aside(output) as aside:
        shutil.copyfile(source, aside)


def written_bytes(output: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if output.is_file():
        return output.stat().st_size
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def card_place(runtime: Runtime, output: Path) -> Path:
    """Return where the model card stands: in a folder; beside a file by its name, so that nobody's README.md is replaced."""
    return output / CARD if runtime.is_folder else output.with_name(f"{output.stem}.{CARD}")
