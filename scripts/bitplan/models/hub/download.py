"""Models of a model hub in a folder of the user: a file takes its place only when its size and hash are what the hub lists."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitplan.core.errors import UserError, user_error
from bitplan.core.files import read_json, write_json
from bitplan.models.checkpoint_files import CARD, PARTS, RECORD, match_names
from bitplan.models.hub.listing import HASHES, PROGRAM, Source, check_request, explained, listed, quiet, token
from bitplan.models.hub.transfer import HubFile, is_whole, obtain, part_of, size_of

log = logging.getLogger(__name__)


def _make_room(folder: Path, missing: Mapping[Path, HubFile]) -> None:
    """Raise `UserError` when the disk under `folder` has less space than the missing files still need."""
    needed = sum(max(0, file.size - size_of(part_of(target, file))) for target, file in missing.items())
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are to come"
        raise user_error("HUB-NO-ROOM", folder, what, "Make room, or choose another folder")


def obtain_all(source: Source, folder: Path, missing: Mapping[Path, HubFile]) -> None:
    """Bring every missing file to its target, the small ones first."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    _make_room(folder, missing)
    headers = build_hf_headers(token=token(), **PROGRAM)
    for target, file in sorted(missing.items(), key=lambda item: item[1].size):
        log.info("%s: fetching %s, %.1f MB", source.id, file.name, file.size / 1e6)
        obtain(hf_hub_url(source.id, file.name, revision=source.commit), headers, file, target)


def read_record(path: Path) -> Source | None:
    """Return what the record of a download says, or None when there is none that can be read."""
    try:
        content = read_json(path)
        files = (HubFile(f["name"], f["size"], kind, f[kind]) for f in content["files"] for kind in HASHES if kind in f)
        return Source(content["id"], content["revision"], content["commit"], tuple(files))
    except (UserError, KeyError, TypeError):
        return None


def _refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        what = f"holds {found[0]}, which is not from this download and would be mixed up with it or lost"
        raise user_error("HUB-FOREIGN-FILES", folder, what, "Give another folder, or an empty one")


def _clear(folder: Path, source: Source) -> dict[Path, HubFile]:
    """Return what `folder` lacks, after removing what an earlier download left there and this one does not have.

    Raises `UserError` for files that no download put there.
    """
    missing = {folder / file.name: file for file in source.files if not is_whole(folder / file.name, file)}
    whole = {file.name for file in source.files} - {target.name for target in missing}
    present = set(match_names((path.name for path in folder.iterdir()), (*PARTS, CARD)))
    earlier = read_record(folder / RECORD)
    ours = {file.name for file in earlier.files} if earlier else set()
    _refuse_foreign(folder, present - whole - ours)
    for name in present - whole:
        (folder / name).unlink()
    for part in set(folder.glob(".*.part")) - {part_of(target, file) for target, file in missing.items()}:
        part.unlink()
    return missing


def _offline_folder(model_id: str, revision: str | None, folder: Path) -> Source:
    """Return the record of a folder that a download already filled, after checking every file."""
    source = read_record(folder / RECORD)
    if source and source.id == model_id and revision in (None, source.revision, source.commit):
        damaged = [file.name for file in source.files if not is_whole(folder / file.name, file)]
        if not damaged:
            return source
        raise user_error(
            "HUB-OFFLINE", folder, f"lacks {damaged[0]}, or has it damaged", "Unset HF_HUB_OFFLINE to fetch it"
        )
    raise user_error(
        "HUB-OFFLINE", model_id, f"is not in {folder}, and HF_HUB_OFFLINE is set", "Unset it to fetch the model"
    )


def download(model_id: str, revision: str | None, folder: Path) -> Source:
    """Bring a model into `folder` and return what it is. What is whole already is checked, and not fetched again.

    Raises `UserError` for whatever keeps the folder from being whole; the next call goes on where this one stopped.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import WeakFileLock

    check_request(model_id, revision)
    quiet()
    with explained(model_id, revision):
        if is_offline_mode():
            return _offline_folder(model_id, revision, folder)
        source = listed(model_id, revision)
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".download.lock"):
            missing = _clear(folder, source)
            write_json(folder / RECORD, source.to_json())
            obtain_all(source, folder, missing)
    return Source(source.id, source.revision, source.commit, source.files, tuple(sorted(t.name for t in missing)))
