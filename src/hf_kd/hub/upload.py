"""Put a prepared folder into a repository, in one commit. Everything that can go wrong says what was left as it was.

Nothing here knows models. Tokens are handed to huggingface_hub and nowhere else: not into messages, logs or files.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from hf_kd.errors import InvalidValueError, PushError

IGNORED = (".git", ".git/*", ".cache/*", "*.lock", "*.tmp", ".*-saving-*", "__pycache__/*")
UNCHANGED = "The repository is as it was; the command can be repeated."
WHOLE_OR_NOT = (
    "All files arrive in one commit, so the repository has the new version or the old one; repeat the command."
)
"""Where the answer to a request was lost, nobody here knows whether it was carried out."""


@dataclass(frozen=True)
class Published:
    """Where a folder went."""

    repo_id: str
    url: str
    """Of the commit."""
    commit: str
    revision: str
    """Branch, or `refs/pr/N`."""
    pull_request: str | None = None
    """Its URL."""


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the id of a repository.

    Args:
        repo_id: USER/NAME.

    Raises:
        InvalidValueError: It is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidValueError(
            f"{repo_id!r} is no repository id: it has the form USER/NAME with letters, digits, '-', '_' and '.', at most 96 "
            "characters."
        ) from error


def check_target(repo_id: str, token: str | None = None) -> None:
    """Refuse, without asking the Hub, a target that nothing could be sent to.

    Args:
        repo_id: USER/NAME, or the NAME of one's own.
        token: By default that of `hf auth login`, or HF_TOKEN.

    Raises:
        InvalidValueError: The id is malformed.
        PushError: Offline, or without a token.
    """
    check_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise PushError(
            f"Nothing was sent to {repo_id}: offline mode is on (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE). Unset it to push."
        )
    if not (token or get_token()):
        raise PushError(
            f"There is no token to write to {repo_id} with. Log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write access."
        )


def prepare(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    space_sdk: str | None = None,
) -> str:
    """Create the repository, and the branch, if they are not there.

    Args:
        repo_id: USER/NAME, or the NAME of one's own.
        repo_type: "model", "dataset" or "space".
        private: Whether a new one is private.
        token: By default that of `hf auth login`, or HF_TOKEN.
        revision: The branch; one that starts with "refs/" is not made.
        space_sdk: Of a new Space.

    Returns:
        The full id, with the user's name.

    Raises:
        InvalidValueError: The id is malformed.
        PushError: Offline, without a valid token, without the right to write there, without a network, and where `private`
            is asked for and the repository is there and public.
    """
    check_target(repo_id, token)
    api = HfApi(token=token)
    with _explained(repo_id):
        try:
            url = api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True)
            full = url.repo_id
        except HfHubHTTPError as error:
            # an existing repository can be written to without the right to create one
            if error.response.status_code != 403 or not api.repo_exists(repo_id, repo_type=repo_type):
                raise
            full = repo_id
        if private and api.repo_info(full, repo_type=repo_type).private is False:
            raise PushError(
                f"{full} is there already and is public, and private was asked for. Nothing was sent. Make it private in "
                "its settings, choose another repository, or push without asking for private."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(full, branch=revision, repo_type=repo_type, exist_ok=True)
    return full


def upload(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    gone: Iterable[str] = (),
    parent: str | None = None,
) -> Published:
    """Upload `folder` in one commit to a repository that is there (see `prepare`).

    Args:
        folder: What is uploaded.
        repo_id: USER/NAME.
        message: Of the commit.
        repo_type: "model", "dataset" or "space".
        token: By default that of `hf auth login`, or HF_TOKEN.
        revision: The branch.
        create_pr: Open a pull request instead of writing.
        gone: Files of the repository that are deleted in the same commit, unless `folder` brings them, so that the shards
            of an earlier checkpoint do not stay among those of the new one.
        parent: The commit that `folder` was made for: if another one came after it, nothing is written. A pull request
            overwrites nothing, and is made all the same.

    Returns:
        Where it went.

    Raises:
        InvalidValueError: A link leads out of the folder.
        PushError: The upload failed, and the repository is unchanged.
    """
    check_repo_id(repo_id)
    _refuse_links(folder)
    with _explained(repo_id, lost=WHOLE_OR_NOT):
        info = HfApi(token=token).upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            commit_message=message,
            ignore_patterns=list(IGNORED),
            delete_patterns=[glob.escape(name) for name in sorted(gone)] or None,
            parent_commit=None if create_pr else parent,
        )
    return Published(repo_id, info.commit_url, info.oid, info.pr_revision or revision or "main", info.pr_url)


def fetch(
    repo_id: str, name: str, *, repo_type: str = "model", revision: str | None = None, token: str | None = None
) -> bytes | None:
    """A file as it is in a repository that is there (see `prepare`).

    Args:
        repo_id: USER/NAME.
        name: Of the file.
        repo_type: "model", "dataset" or "space".
        revision: The branch.
        token: By default that of `hf auth login`, or HF_TOKEN.

    Returns:
        Its bytes; None where the Hub says that it has none.

    Raises:
        PushError: It could not be read, and nobody knows what an upload would overwrite.
    """
    with _explained(repo_id, reading=name):
        try:  # anew, since a failed request would otherwise be answered from the cache
            path = HfApi(token=token).hf_hub_download(
                repo_id, name, repo_type=repo_type, revision=revision, force_download=True
            )
        except (RemoteEntryNotFoundError, RevisionNotFoundError):
            return None
        except ValueError as error:  # so huggingface_hub wraps what failed when the cache may not answer
            raise error.__cause__ or error from None
    return Path(path).read_bytes()


def files_in(repo_id: str, *, revision: str | None = None, token: str | None = None) -> tuple[set[str], str | None]:
    """Paths of all files of a repository that is there (see `prepare`), and the commit that has them.

    Args:
        repo_id: USER/NAME.
        revision: The branch; nothing is in one that is not there, and no commit has it.
        token: By default that of `hf auth login`, or HF_TOKEN.

    Raises:
        PushError: They could not be listed, and nobody knows what an upload would overwrite.
    """
    with _explained(repo_id, reading="what is in it"):
        api = HfApi(token=token)
        try:
            commit = api.repo_info(repo_id, revision=revision).sha
            return set(api.list_repo_files(repo_id, revision=commit)), commit
        except RevisionNotFoundError:
            return set(), None


def _refuse_links(folder: Path) -> None:
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise InvalidValueError(
                f"{path.relative_to(folder)} is a link that leads out of the folder; what it points to would be published. "
                "Replace it by the file itself."
            )


@contextlib.contextmanager
def _explained(repo_id: str, reading: str | None = None, lost: str = UNCHANGED) -> Iterator[None]:
    """What the client raises, as one sentence with the way out. The request's headers are in none of them.

    reading: the file, where one is being read and nothing written. lost: what to say where an answer did not arrive.
    """
    doing = f"{repo_id} was being written"
    if reading is not None:
        doing = f"{reading} was being read, and an upload would overwrite it unseen"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PushError(f"{repo_id} cannot be reached: offline mode is on. Unset HF_HUB_OFFLINE.") from error
    except HfHubHTTPError as error:
        raise PushError(_reason(repo_id, error, doing, lost)) from error
    except httpx.HTTPError as error:
        raise PushError(_broken(repo_id, error, doing, lost)) from error
    except RuntimeError as error:  # so huggingface_hub wraps a failed transfer of a large file, before any commit
        if isinstance(error.__cause__, HfHubHTTPError):
            raise PushError(_reason(repo_id, error.__cause__, doing, UNCHANGED)) from error
        if isinstance(error.__cause__, httpx.HTTPError):
            raise PushError(_broken(repo_id, error.__cause__, doing, UNCHANGED)) from error
        raise


def _broken(repo_id: str, error: httpx.HTTPError, doing: str, left: str) -> str:
    return f"{repo_id}: the connection failed ({type(error).__name__}) while {doing}. {left}"


def _reason(repo_id: str, error: HfHubHTTPError, doing: str, lost: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return (
            f"The Hub does not accept the token for {repo_id} (401). Log in again with `hf auth login`, or set HF_TOKEN to "
            f"one with write access. {UNCHANGED}"
        )
    if status == 403 and not doing.startswith(repo_id):
        return f"The Hub refuses this token (403) while {doing}. Use one that may read {repo_id}. {UNCHANGED}"
    if status == 403:
        return (
            f"This token may not write to {repo_id} (403). Use one with write access to that namespace, another repository, "
            f"or a pull request (create_pr). {UNCHANGED}"
        )
    if status == 412:
        return (
            f"Somebody else wrote to {repo_id} while this upload was made ready ({status}): its receipt would speak of "
            "files that are no longer there. Nothing was written. Push again, which reads them anew."
        )
    if status == 404:
        return f"{repo_id}, or the revision asked for, is not there (404), or the token may not see it. {UNCHANGED}"
    return f"The Hub answered {status} for {repo_id} while {doing}. {lost if status in (502, 504) else UNCHANGED}"
