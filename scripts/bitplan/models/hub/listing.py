"""What a model hub has of a model: the files to fetch, with their sizes and hashes, and what went wrong in one line.

No pickle is fetched. The token comes from the environment variable HF_TOKEN alone; no message holds it, nor any text of the hub's answers.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitplan import __version__
from bitplan.core.errors import UserError, user_error
from bitplan.models.checkpoint_files import CARD, INDEX, PARTS, WEIGHTS, match_names
from bitplan.models.hub.ids import looks_like_id
from bitplan.models.hub.transfer import CONTACTS, HubFile, pause_asked, retried

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

log = logging.getLogger(__name__)

REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]*")
HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "blob_id": re.compile(r"[0-9a-f]{40}")}

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
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


def token() -> str | bool:
    """Return the token, or False: without it no login that is stored on the machine is used. Raises `UserError`."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise user_error("HUB-BAD-TOKEN", "HF_TOKEN", "holds a character that no token has", "Copy the token again")
    return token or False


def host() -> str:
    """Return the hub's host for messages: the address may hold a password."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or "HF_ENDPOINT"


def _refuse_unsafe(model_id: str, names: Iterable[str]) -> None:
    """Raise `UserError` for a name under which a file that is wanted would lie elsewhere than in its folder."""
    for name in names:
        parts = re.split(r"[/\\]", name)
        outside = ".." in parts or "\\" in name or not parts[0] or ":" in parts[0]
        if outside and match_names(parts[-1:]):
            shown = name.encode("unicode_escape").decode()
            raise user_error(
                "HUB-UNSAFE-PATH",
                model_id,
                f"lists a file {shown!r}, which is not a place inside its folder",
                "Nothing was fetched",
            )


def _refuse_without_weights(model_id: str, names: list[str]) -> None:
    """Raise `UserError` for a repository that has no safetensors or no `config.json` in its root."""
    pickles = match_names(names, PICKLES)
    if not match_names(names, WEIGHTS) and pickles:
        raise user_error(
            "HUB-PICKLE-ONLY",
            model_id,
            f"has its weights only as pickle ({pickles[0]}), which can run any code when it is read and is not fetched",
            f'Convert it where you trust it: AutoModelForCausalLM.from_pretrained("{model_id}").save_pretrained("DIR"), the'
            " same with AutoTokenizer, then give DIR",
        )
    if not match_names(names, WEIGHTS):
        raise user_error(
            "HUB-NO-MODEL-FILES", model_id, "has no safetensors file", "Give a model that is saved by transformers"
        )
    if "config.json" not in names:
        raise user_error(
            "HUB-NO-MODEL-FILES", model_id, "has no config.json", "Give a model that is saved by transformers"
        )


def wanted(model_id: str, names: list[str]) -> list[str]:
    """Return the names to fetch, sorted. Raises `UserError` where there is nothing that can be read, or a name is unsafe."""
    _refuse_unsafe(model_id, names)
    # No folder of a repository is read: there are copies of the weights for other programs.
    root = [name for name in names if "/" not in name]
    _refuse_without_weights(model_id, root)
    # Beside its own shards a repository may hold the weights a second time, for another program.
    own = {"model.safetensors", INDEX} & set(root)
    found = match_names(root, (*PARTS, CARD))
    return sorted(name for name in found if not (own and name.startswith("consolidated")))


def _hub_file(model_id: str, sibling: Any) -> HubFile:
    kind = "sha256" if sibling.lfs else "blob_id"
    size, found = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
    if not isinstance(size, int) or not HASHES[kind].fullmatch(found or ""):
        raise user_error(
            "HUB-UNVERIFIABLE",
            model_id,
            f"{sibling.rfilename} is listed without size and hash",
            "It could not be checked",
        )
    return HubFile(sibling.rfilename, size, kind, found)


def _refuse_huge(model_id: str, files: Iterable[HubFile]) -> None:
    """Raise `UserError` for a file that the hub gives by a protocol of its own only, which cannot go on after a break."""
    from huggingface_hub import constants

    for file in files:
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            what = f"{file.name} has {file.size / 1e9:.0f} GB, too much for a transfer over HTTP"
            raise user_error(
                "HUB-FILE-TOO-LARGE",
                model_id,
                what,
                f"Fetch it with `hf download {model_id} --local-dir DIR`, then give DIR",
            )


def _described(model_id: str, revision: str | None) -> "ModelInfo":
    """Return the hub's description of a model. Raises `UserError` when what answers is no hub, and the transport's errors."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api, timeout = HfApi(token=token(), **PROGRAM), constants.HF_HUB_DOWNLOAD_TIMEOUT
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
    raise user_error("HUB-NO-HUB", model_id, f"{host()} does not answer as a model hub does", "Check HF_ENDPOINT")


def listed(model_id: str, revision: str | None) -> Source:
    """Return a model as the hub lists it now. Raises `UserError`, and the transport's errors."""
    from huggingface_hub import constants

    info = _described(model_id, revision)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = tuple(_hub_file(model_id, siblings[name]) for name in wanted(model_id, list(siblings)))
    _refuse_huge(model_id, files)
    return Source(model_id, revision or constants.DEFAULT_REVISION, info.sha, files)


def _refused(error: "HfHubHTTPError", model_id: str, revision: str | None) -> UserError:
    """Return what the hub's refusal means for the user."""
    from huggingface_hub import errors

    status, address = error.response.status_code, host()
    if isinstance(error, errors.GatedRepoError):
        hint = "Accept them on the model's page, and set HF_TOKEN to a token of that account"
        return user_error("HUB-GATED", model_id, f"is gated: {address} gives it to those who accepted its terms", hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return user_error(
            "HUB-NO-REVISION",
            model_id,
            f"has no revision {revision!r} on {address}",
            "Give a branch, a tag or a commit of it",
        )
    # Without a token the hub answers 401 for a model that is not there, as for one that it does not show.
    hidden = (status == 401 and not token()) or (status == 404 and not isinstance(error, errors.EntryNotFoundError))
    if hidden or isinstance(error, errors.RepositoryNotFoundError):
        shown = "to the token in HF_TOKEN" if token() else "without a token"
        hint = "Check the name; a private model needs a token in HF_TOKEN that may read it"
        return user_error(
            "HUB-NOT-FOUND", model_id, f"there is no such folder here, and {address} shows no such model {shown}", hint
        )
    if status in (401, 403):
        what = "does not accept the token in HF_TOKEN" if token() else "wants a token"
        hint = "Set HF_TOKEN to a token that may read this model" + ("" if not token() else ", or unset it")
        return user_error("HUB-UNAUTHORIZED", model_id, f"{address} {what} ({status})", hint)
    if status == 429:
        asked = pause_asked(error.response.headers)
        wait = f" and asks to wait {asked:.0f} s" if asked else ""
        hint = "Run the same again later: what has come is kept. With a token in HF_TOKEN the limit is higher"
        return user_error("HUB-RATE-LIMIT", model_id, f"{address} limits how much may be asked of it (429){wait}", hint)
    return user_error(
        "HUB-REFUSED", model_id, f"{address} answered {status}", "Run the same again later: what has come is kept"
    )


@contextmanager
def explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub, the connection and the disk raise into `UserError`, without any text that came from the hub."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(error, model_id, revision) from None
    except (httpx2.RequestError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        what = f"there is no such folder here, and {host()} cannot be reached ({type(error).__name__})"
        hint = "Check the folder's name, or the connection, HF_ENDPOINT and the proxy; what has come is kept"
        raise user_error("HUB-UNREACHABLE", model_id, what, hint) from None
    except OSError as error:
        what = f"cannot be written: {error.strerror or type(error).__name__}"
        raise user_error(
            "OUTPUT-UNWRITABLE", error.filename or model_id, what, "Make room, or choose another folder"
        ) from None


def quiet() -> None:
    """Keep the library's own warnings and bars out of the output: what they say is said here, once."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    disable_progress_bars()


def check_request(model_id: str, revision: str | None) -> None:
    """Raise `UserError` for what cannot be the id of a model or a revision of one."""
    if not looks_like_id(model_id):
        raise user_error(
            "HUB-BAD-ID", model_id, "is not the id of a model on a hub", "It has the form organization/name"
        )
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise user_error("HUB-BAD-REVISION", revision, "cannot be a revision", "Give a branch, a tag or a commit")
