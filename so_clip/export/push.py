"""Upload an export to a model repository on the Hugging Face hub, in one commit."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from so_clip.errors import InputError, reason_of
from so_clip.system.commands import command

# The hub's client has no time limit for an answer. A hub that takes a large commit may be silent
# for a while.
PROBE_SECONDS, SILENT_SECONDS = 5, 120
# An answer about a user is shorter.
_MOST_BYTES = 2**20
_UNAUTHORISED, _FORBIDDEN = 401, 403
_TOKEN_PAGE = "huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Repository:
    """A model repository that the user's token may write to.

    Attributes:
        name: OWNER/NAME.
        endpoint: the address of the hub.
    """

    name: str
    endpoint: str
    token: str


def check_repository(name: str) -> Repository:
    """Check name, token and network with one request, before any work is done.

    HF_ENDPOINT and HF_TOKEN set the hub and the token, as for all clients of the hub.

    Args:
        name: of the repository: OWNER/NAME, or NAME for one of the token's user.

    Raises:
        InputError: the name is no repository's name, there is no token, the hub refuses it, or the
            hub does not answer within `PROBE_SECONDS`.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push {name}: {reason_of(error)} Give OWNER/NAME.") from error
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    token = get_token()
    if token is None:
        raise InputError(
            f"--push {name}: there is no token of the hub. Set HF_TOKEN to a token with write "
            f"access ({_TOKEN_PAGE}), or log in: {command('auth', 'login', program=('hf',))}."
        )
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push {name}: HF_HUB_OFFLINE forbids requests to the hub. Unset it.")
    try:
        with requests.get(
            f"{endpoint}/api/whoami-v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=PROBE_SECONDS,
            stream=True,
        ) as answer:
            status = answer.status_code
            user = str(json.loads(_body(answer))["name"]) if status == 200 else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreachable(name, endpoint, type(error).__name__) from error
    if status in (_UNAUTHORISED, _FORBIDDEN):
        raise _refused(name, endpoint, status)
    if not user:
        raise _unreachable(name, endpoint, f"status {status}")
    return Repository(name if "/" in name else f"{user}/{name}", endpoint, token)


def _body(answer: requests.Response) -> bytes:
    """Return the body of an answer; ValueError if it is long or slow."""
    body, end = b"", time.monotonic() + PROBE_SECONDS
    for piece in answer.iter_content(2**16):
        body += piece
        if len(body) > _MOST_BYTES or time.monotonic() > end:
            raise ValueError("the answer does not end")
    return body


def push(repository: Repository, files: Mapping[str, Path | bytes], message: str) -> str:
    """Upload files in one commit; create the repository if there is none.

    Args:
        repository: from `check_repository`.
        files: files or their content, by their paths in the repository.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub refuses the repository or the commit. The repository has no new file.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    get_session().timeout = SILENT_SECONDS
    api = HfApi(endpoint=repository.endpoint, token=repository.token)
    operations: list[Any] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    try:
        api.create_repo(repository.name, exist_ok=True)
        api.create_commit(repository.name, operations, commit_message=message)
    except Exception as error:  # the client raises the varying errors of its transport
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (_UNAUTHORISED, _FORBIDDEN):
            raise _refused(repository.name, repository.endpoint, status) from error
        raise InputError(
            f"--push {repository.name}: {repository.endpoint} did not take the files: "
            f"{type(error).__name__}: {reason_of(error)}. The repository has none of them; on this "
            "disk they are complete. Repeat the command with --force."
        ) from error
    return f"{repository.endpoint}/{repository.name}"


def _refused(name: str, endpoint: str, status: int) -> InputError:
    return InputError(
        f"--push {name}: {endpoint} refuses the token (status {status}). It needs write access to "
        f"this repository: make another one at {_TOKEN_PAGE} and set HF_TOKEN."
    )


def _unreachable(name: str, endpoint: str, reason: str) -> InputError:
    return InputError(
        f"--push {name}: the hub at {endpoint} gives no answer ({reason}). Check the network and "
        "HF_ENDPOINT, or leave out --push and upload the files later."
    )
