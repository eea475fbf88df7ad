"""What a start of the workflow checks, and what its end prints."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bitplan.config.completion import completed
from bitplan.config.paths import check_places, placed_settings, tokens_seen
from bitplan.config.runtime_palettes import check_palettes
from bitplan.config.settings import Settings, parse_settings
from bitplan.config.unique_keys import check_duplicate_keys
from bitplan.core.errors import Problem, UserError


def settings_of(config: Mapping[str, Any], files: Iterable[str], root: Path) -> Settings:
    """Return the validated settings of a configuration that was merged from some files, completed; the demo is below `root`.

    Raises `UserError` with every problem.
    """
    for path in files:
        check_duplicate_keys(Path(path))
    settings = placed_settings(parse_settings(completed(config, root)), root)
    _check_revisions(settings)
    check_palettes(settings)
    check_places(settings)
    return settings


def _check_revisions(settings: Settings) -> None:
    """Raise `UserError` for a revision of a model that is a local folder."""
    what = "applies to hub models only, but the path is a local folder"
    folders = [
        name for name, model in settings.models.items() if model.revision is not None and Path(model.path).exists()
    ]
    if folders:
        raise UserError(
            Problem("HUB-REVISION-OF-FOLDER", f"models.{name}.revision", what, "Remove it") for name in folders
        )


def held_out_from(settings: Settings) -> dict[str, int]:
    """Return {model: tokens of its evaluation text that come before the held-out ones}; 0 where calibration is another text. Raises `UserError`."""
    return {name: tokens_seen(settings, name) for name in settings.models}


def shared_text_warnings(first: Mapping[str, int]) -> list[str]:
    """Return a line for each model whose calibration and evaluation are one text, from {model: its first held-out token}."""
    return [
        f"models.{name}: calibration and evaluation are one text. Plans are compared on its tokens from {token} on,"
        " behind those of calibration and validation."
        for name, token in first.items()
        if token
    ]


def results_without_records(settings: Settings) -> list[str]:
    """Return a warning if there are results and no record of how they were made, so that no change would rerun anything."""
    present = [name for name in settings.models if any(Path("results", name).glob("*.*"))]
    if not present or any(Path(".snakemake/metadata").glob("*")):
        return []
    return [
        f"results/{present[0]} was made elsewhere: .snakemake/ does not record how, so changed settings and code would make nothing again."
        " Copy .snakemake/ too; or, if nothing has changed, snakemake --touch --forceall --cores 1 takes the results as they are"
        " (docs/reruns.md)."
    ]


def _said_by(path: Path, user: Path) -> list[str]:
    """Return the lines that a comparison.json ends a run with, the page as it is found from the folder `user`; what is wrong with it where it
    cannot be read: the run is over by then."""
    from bitplan.core.files import read_json
    from bitplan.report.front import summary_lines

    try:
        return [
            *summary_lines(read_json(path)["rows"]),
            f"The whole table: {os.path.relpath(path.with_suffix('.html'), user)}",
        ]
    except UserError as error:
        return [str(problem) for problem in error.problems]


def comparisons_since(settings: Settings, started: float, user: Path) -> list[str]:
    """Return what the comparisons say that were written after `started`, in seconds since the epoch: a short text for each model. `user` is
    the folder in which the run was started, which --directory leaves."""
    paths = {name: Path(f"results/{name}/comparison.json") for name in settings.models}
    return [
        "\n".join((name, *_said_by(path, user)))
        for name, path in paths.items()
        if path.exists() and path.stat().st_mtime >= started
    ]
