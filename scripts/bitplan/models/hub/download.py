"""Models of a model hub: their safetensors, settings and tokenizer, in a folder of the user or in the hub's own cache.

A file takes its place only when its size and hash are what the hub lists. No pickle is fetched. The token comes from the
environment variable HF_TOKEN alone; no message holds it, nor any text of the hub's answers.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan import __version__
from bitplan.core.errors import UserError, user_error
from bitplan.core.files import read_json, write_json
from bitplan.models.checkpoint_files import INDEX, WEIGHTS, matching
from bitplan.models.hub.transfer import CONTACTS, HubFile, is_whole, obtain, part_of, pause_asked, retried, size_of

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger(__name__)

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
ID = re.compile(f"{PART}/{PART}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]*")
HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "blob_id": re.compile(r"[0-9a-f]{40}")}

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
RECORD = ".download.json"
PROGRAM = {"library_name": "bitplan", "library_version": __version__}


@dataclass(frozen=True)
class Source:
    """A model of the hub at one commit: what was asked for, what it was then, the files to have."""

    id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]
    transferred: tuple[str, ...] = field(default=(), compare=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the record of a download."""
        content = {"id": self.id, "revision": self.revision, "commit": self.commit}
        return {**content, "files": [file.to_json() for file in self.files]}


def looks_like_id(text: str) -> bool:
    """Return whether `text` has the form organization/name by the hub's rules. A .json is the file of an earlier step."""
    return bool(ID.fullmatch(text)) and not re.search(r"--|\.\.|\.git$|\.json$", text)


def _token() -> str | bool:
    """Return the token, or False: without it no login that is stored on the machine is used. Raises `UserError`."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise user_error("HF_TOKEN", "holds a character that no token has", "Copy the token again")
    return token or False


def _host() -> str:
    """Return the hub's host for messages: the address may hold a password."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or "HF_ENDPOINT"


def _refuse_unsafe(model_id: str, names: Iterable[str]) -> None:
    """Raise `UserError` for a name under which a file that is wanted would lie elsewhere than in its folder."""
    for name in names:
        parts = re.split(r"[/\\]", name)
        outside = ".." in parts or "\\" in name or not parts[0] or ":" in parts[0]
        if outside and matching(parts[-1:]):
            shown = name.encode("unicode_escape").decode()
            raise user_error(
                model_id, f"lists a file {shown!r}, which is not a place inside its folder", "Nothing was fetched"
            )


def _refuse_without_weights(model_id: str, names: list[str]) -> None:
    """Raise `UserError` for a repository that has no safetensors or no `config.json` in its root."""
    pickles = matching(names, PICKLES)
    if not matching(names, WEIGHTS) and pickles:
        raise user_error(
            model_id,
            f"has its weights only as pickle ({pickles[0]}), which can run any code when it is read and is not fetched",
            f'Convert it where you trust it: AutoModelForCausalLM.from_pretrained("{model_id}").save_pretrained("DIR"), the'
            " same with AutoTokenizer, then give DIR",
        )
    if not matching(names, WEIGHTS):
        raise user_error(model_id, "has no safetensors file", "Give a model that is saved by transformers")
    if "config.json" not in names:
        raise user_error(model_id, "has no config.json", "Give a model that is saved by transformers")


def _wanted(model_id: str, names: list[str]) -> list[str]:
    """Return the names to fetch, sorted. Raises `UserError` where there is nothing that can be read, or a name is unsafe."""
    _refuse_unsafe(model_id, names)
    # No folder of a repository is read: there are copies of the weights for other programs.
    root = [name for name in names if "/" not in name]
    _refuse_without_weights(model_id, root)
    # Beside its own shards a repository may hold the weights a second time, for another program.
    own = {"model.safetensors", INDEX} & set(root)
    return sorted(name for name in matching(root) if not (own and name.startswith("consolidated")))


def _hub_file(model_id: str, sibling: Any) -> HubFile:
    kind = "sha256" if sibling.lfs else "blob_id"
    size, found = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
    if not isinstance(size, int) or not HASHES[kind].fullmatch(found or ""):
        raise user_error(model_id, f"{sibling.rfilename} is listed without size and hash", "It could not be checked")
    return HubFile(sibling.rfilename, size, kind, found)


def _refuse_huge(model_id: str, files: Iterable[HubFile]) -> None:
    """Raise `UserError` for a file that the hub gives by a protocol of its own only, which cannot go on after a break."""
    from huggingface_hub import constants

    for file in files:
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            what = f"{file.name} has {file.size / 1e9:.0f} GB, too much for a transfer over HTTP"
            raise user_error(model_id, what, f"Fetch it with `hf download {model_id} --local-dir DIR`, then give DIR")


def _described(model_id: str, revision: str | None) -> "ModelInfo":
    """Return the hub's description of a model. Raises `UserError` when what answers is no hub, and the transport's errors."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api, timeout = HfApi(token=_token(), **PROGRAM), constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info = retried(
            lambda: api.model_info(model_id, revision=revision, files_metadata=True, timeout=timeout), CONTACTS
        )
        if HASHES["blob_id"].fullmatch(info.sha or ""):
            return info
    except HfHubHTTPError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise user_error(model_id, f"{_host()} does not answer as a model hub does", "Check HF_ENDPOINT")


def listed(model_id: str, revision: str | None) -> Source:
    """Return a model as the hub lists it now. Raises `UserError`, and the transport's errors."""
    from huggingface_hub import constants

    info = _described(model_id, revision)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = tuple(_hub_file(model_id, siblings[name]) for name in _wanted(model_id, list(siblings)))
    _refuse_huge(model_id, files)
    return Source(model_id, revision or constants.DEFAULT_REVISION, info.sha, files)


def _refused(error: "HfHubHTTPError", model_id: str, revision: str | None) -> UserError:
    """Return what the hub's refusal means for the user."""
    from huggingface_hub import errors

    status, host = error.response.status_code, _host()
    if isinstance(error, errors.GatedRepoError):
        hint = "Accept them on the model's page, and set HF_TOKEN to a token of that account"
        return user_error(model_id, f"is gated: {host} gives it to those who accepted its terms", hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return user_error(model_id, f"has no revision {revision!r} on {host}", "Give a branch, a tag or a commit of it")
    # Without a token the hub answers 401 for a model that is not there, as for one that it does not show.
    hidden = (status == 401 and not _token()) or (status == 404 and not isinstance(error, errors.EntryNotFoundError))
    if hidden or isinstance(error, errors.RepositoryNotFoundError):
        shown = "to the token in HF_TOKEN" if _token() else "without a token"
        hint = "Check the name; a private model needs a token in HF_TOKEN that may read it"
        return user_error(model_id, f"there is no such folder here, and {host} shows no such model {shown}", hint)
    if status in (401, 403):
        what = "does not accept the token in HF_TOKEN" if _token() else "wants a token"
        hint = "Set HF_TOKEN to a token that may read this model" + ("" if not _token() else ", or unset it")
        return user_error(model_id, f"{host} {what} ({status})", hint)
    if status == 429:
        asked = pause_asked(error.response.headers)
        wait = f" and asks to wait {asked:.0f} s" if asked else ""
        hint = "Run the same again later: what has come is kept. With a token in HF_TOKEN the limit is higher"
        return user_error(model_id, f"{host} limits how much may be asked of it (429){wait}", hint)
    return user_error(model_id, f"{host} answered {status}", "Run the same again later: what has come is kept")


@contextmanager
def _explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub, the connection and the disk raise into `UserError`, without any text that came from the hub."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(error, model_id, revision) from None
    except (httpx2.RequestError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        what = f"there is no such folder here, and {_host()} cannot be reached ({type(error).__name__})"
        hint = "Check the folder's name, or the connection, HF_ENDPOINT and the proxy; what has come is kept"
        raise user_error(model_id, what, hint) from None
    except OSError as error:
        what = f"cannot be written: {error.strerror or type(error).__name__}"
        raise user_error(error.filename or model_id, what, "Make room, or choose another folder") from None


def _quiet() -> None:
    """Keep the library's own warnings and bars out of the output: what they say is said here, once."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    disable_progress_bars()


def _check(model_id: str, revision: str | None) -> None:
    if not looks_like_id(model_id):
        raise user_error(model_id, "is not the id of a model on a hub", "It has the form organization/name")
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise user_error(revision, "cannot be a revision", "Give a branch, a tag or a commit")


def _make_room(folder: Path, missing: Mapping[Path, HubFile]) -> None:
    """Raise `UserError` when the disk under `folder` has less space than the missing files still need."""
    needed = sum(max(0, file.size - size_of(part_of(target, file))) for target, file in missing.items())
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are to come"
        raise user_error(folder, what, "Make room, or choose another folder")


def _obtain_all(source: Source, folder: Path, missing: Mapping[Path, HubFile]) -> None:
    """Bring every missing file to its target, the small ones first."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    _make_room(folder, missing)
    headers = build_hf_headers(token=_token(), **PROGRAM)
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
        raise user_error(folder, what, "Give another folder, or an empty one")


def _clear(folder: Path, source: Source) -> dict[Path, HubFile]:
    """Return what `folder` lacks, after removing what an earlier download left there and this one does not have.

    Raises `UserError` for files that no download put there.
    """
    missing = {folder / file.name: file for file in source.files if not is_whole(folder / file.name, file)}
    whole = {file.name for file in source.files} - {target.name for target in missing}
    present = set(matching(path.name for path in folder.iterdir()))
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
        raise user_error(folder, f"lacks {damaged[0]}, or has it damaged", "Unset HF_HUB_OFFLINE to fetch it")
    raise user_error(model_id, f"is not in {folder}, and HF_HUB_OFFLINE is set", "Unset it to fetch the model")


def download(model_id: str, revision: str | None, folder: Path) -> Source:
    """Bring a model into `folder` and return what it is. What is whole already is checked, and not fetched again.

    Raises `UserError` for whatever keeps the folder from being whole; the next call goes on where this one stopped.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import WeakFileLock

    _check(model_id, revision)
    _quiet()
    with _explained(model_id, revision):
        if is_offline_mode():
            return _offline_folder(model_id, revision, folder)
        source = listed(model_id, revision)
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".download.lock"):
            missing = _clear(folder, source)
            write_json(folder / RECORD, source.to_json())
            _obtain_all(source, folder, missing)
    return Source(source.id, source.revision, source.commit, source.files, tuple(sorted(t.name for t in missing)))


def _cached_names(model_id: str, revision: str | None) -> list[str] | None:
    """Return the names of a model's files by the list that the cache keeps, or None when it keeps none. Raises `UserError`."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return _wanted(model_id, [file.path for file in get_cached_repo_tree(model_id, revision=revision)])
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
    for path in (folder / name for name in names or matching(os.listdir(folder))):
        blob = path.resolve()
        kind = next((kind for kind, form in HASHES.items() if form.fullmatch(blob.name)), None)
        if kind and not is_whole(blob, HubFile(path.name, blob.stat().st_size, kind, blob.name)):
            what = "is damaged in the hub's cache: its content is not what its name says"
            raise user_error(path, what, "Run the same with a connection to fetch it again")
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
        _obtain_all(source, blobs, {path: file for path, file in targets.items() if not is_whole(path, file)})
        names = [file.name for file in source.files]
        linked = Path(snapshot_download(source.id, revision=source.commit, allow_patterns=names, token=_token()))
        _check_linked(linked, source)
        _name_commit(cache / name / "refs", source)
    return linked


def _check_linked(folder: Path, source: Source) -> None:
    """Raise `UserError` when the cache has a file from elsewhere than the checked ones, and its content is another."""
    for file in source.files:
        path = folder / file.name
        if path.resolve().name != file.hash and not is_whole(path, file):
            raise user_error(path, "is damaged in the hub's cache", "Remove it, and run the same again")


def _name_commit(refs: Path, source: Source) -> None:
    """Write down which commit a branch or tag is, so that it is found without the hub."""
    from bitplan.core.files import written_aside

    if source.revision != source.commit:
        with written_aside(refs / source.revision) as aside:
            aside.write_text(source.commit, encoding="utf-8")


def _cached(model_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the hub's cache, fetched or, without a connection, as it lies there."""
    import httpx2
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        folder = _in_cache(model_id, revision)
        if folder is None:
            what = "there is no such folder here, the hub's cache has no such model, and HF_HUB_OFFLINE is set"
            raise user_error(model_id, what, "Check the folder's name, or unset HF_HUB_OFFLINE to fetch the model")
        return folder
    try:
        source = listed(model_id, revision)
    except httpx2.TransportError:
        folder = _in_cache(model_id, revision)
        if folder is None:
            raise
        log.warning("%s cannot be reached: using %s as it is in the hub's cache", _host(), model_id)
        return folder
    return _into_cache(source)


def fetch(model_id: str, revision: str | None, folder: Path | None) -> Path:
    """Return the folder of a checkpoint of the hub: `folder`, or the one in the hub's cache when that is None.

    Raises `UserError` for whatever keeps it from being whole.
    """
    if folder is not None:
        download(model_id, revision, folder)
        return folder
    _check(model_id, revision)
    _quiet()
    with _explained(model_id, revision):
        return _cached(model_id, revision)


def located(path: Path, revision: str | None) -> Path:
    """Return `path`, or the folder of the model of the hub that it names where there is no such path. Raises `UserError`."""
    here = os.path.exists(path)  # Path.exists raises for a name that the system finds too long
    if here and revision is not None:
        raise user_error(path, "is here, and --revision is for a model of the hub", "Leave --revision out")
    return fetch(path.as_posix(), revision, None) if not here and looks_like_id(path.as_posix()) else path
