"""Models of a model hub in the hub's own cache, and the folder of a model that is named by its path or its id."""

import logging
import os
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.models.checkpoint_files import match_names
from bitplan.models.hub.download import download, obtain_all
from bitplan.models.hub.ids import looks_like_id
from bitplan.models.hub.listing import (
    HASHES,
    Source,
    check_request,
    explained,
    host,
    listed,
    quiet,
    token,
    wanted,
)
from bitplan.models.hub.transfer import HubFile, is_whole

log = logging.getLogger(__name__)


def _cached_names(model_id: str, revision: str | None) -> list[str] | None:
    """Return the names of a model's files by the list that the cache keeps, or None when it keeps none. Raises `UserError`."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return wanted(model_id, [file.path for file in get_cached_repo_tree(model_id, revision=revision)])
    except CachedRepoTreeNotFoundError:
        return None


def _in_cache(model_id: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the hub's cache without asking the hub, or None. Raises `UserError` when it is damaged.

    The cache keeps every file under its hash, so that it can be checked without the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = _cached_names(model_id, revision)
    try:
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=names, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    for path in (folder / name for name in names or match_names(os.listdir(folder))):
        blob = path.resolve()
        kind = next((kind for kind, form in HASHES.items() if form.fullmatch(blob.name)), None)
        if kind and not is_whole(blob, HubFile(path.name, blob.stat().st_size, kind, blob.name)):
            what = "is damaged in the hub's cache: its content is not what its name says"
            raise user_error("HUB-CACHE-DAMAGED", path, what, "Run the same with a connection to fetch it again")
    return folder


def _into_cache(source: Source) -> Path:
    """Bring a model into the hub's cache and return its folder there.

    The cache keeps a file under its hash and links to it; a file that lies there already is only linked by the library.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import WeakFileLock

    name = f"models--{source.id.replace('/', '--')}"
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    blobs, locks = cache / name / "blobs", cache / ".locks" / name
    for folder in (blobs, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / "bitplan.lock"):
        targets = {blobs / file.hash: file for file in source.files}
        obtain_all(source, blobs, {path: file for path, file in targets.items() if not is_whole(path, file)})
        names = [file.name for file in source.files]
        linked = Path(snapshot_download(source.id, revision=source.commit, allow_patterns=names, token=token()))
        _check_linked(linked, source)
        _name_commit(cache / name / "refs", source)
    return linked


def _check_linked(folder: Path, source: Source) -> None:
    """Raise `UserError` when the cache has a file from elsewhere than the checked ones, and its content is another."""
    for file in source.files:
        path = folder / file.name
        if path.resolve().name != file.hash and not is_whole(path, file):
            raise user_error(
                "HUB-CACHE-DAMAGED", path, "is damaged in the hub's cache", "Remove it, and run the same again"
            )


def _name_commit(refs: Path, source: Source) -> None:
    """Write down which commit a branch or tag is, so that it is found without the hub."""
    from bitplan.core.files import write_aside

    if source.revision != source.commit:
        with write_aside(refs / source.revision) as aside:
            aside.write_text(source.commit, encoding="utf-8")


def _cached(model_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the hub's cache, fetched or, without a connection, as it lies there."""
    import httpx2
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        folder = _in_cache(model_id, revision)
        if folder is None:
            what = "there is no such folder here, the hub's cache has no such model, and HF_HUB_OFFLINE is set"
            raise user_error(
                "HUB-OFFLINE", model_id, what, "Check the folder's name, or unset HF_HUB_OFFLINE to fetch the model"
            )
        return folder
    try:
        source = listed(model_id, revision)
    except httpx2.TransportError:
        folder = _in_cache(model_id, revision)
        if folder is None:
            raise
        log.warning("%s cannot be reached: using %s as it is in the hub's cache", host(), model_id)
        return folder
    return _into_cache(source)


def fetch(model_id: str, revision: str | None, folder: Path | None) -> Path:
    """Return the folder of a checkpoint of the hub: `folder`, or the one in the hub's cache when that is None.

    Raises `UserError` for whatever keeps it from being whole.
    """
    if folder is not None:
        download(model_id, revision, folder)
        return folder
    check_request(model_id, revision)
    quiet()
    with explained(model_id, revision):
        return _cached(model_id, revision)


def located(path: Path, revision: str | None) -> Path:
    """Return `path`, or the folder of the model of the hub that it names where there is no such path. Raises `UserError`."""
    here = os.path.exists(path)  # Path.exists raises for a name that the system finds too long
    if here and revision is not None:
        raise user_error(
            "HUB-REVISION-OF-FOLDER",
            path,
            "is a local folder, but --revision applies to hub models only",
            "Leave --revision out",
        )
    return fetch(path.as_posix(), revision, None) if not here and looks_like_id(path.as_posix()) else path
