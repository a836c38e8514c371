"""Files of the Hugging Face hub, and published weights by their tag: cached or downloaded."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from so_clip.clip.loading.architecture_names import is_image_only
from so_clip.clip.loading.timm_entries import timm_entry, timm_tags
from so_clip.errors import InputError, nearest

# Without a network the hub's client retries for most of a minute. One request with this time limit
# shows early whether a download can start.
PROBE_SECONDS = 5


def pretrained_config(architecture: str, tag: str) -> dict[str, Any]:
    """Return the entry for published weights: their location and image preprocessing.

    Entries of timm have the form of open_clip's.

    Raises:
        InputError: open_clip or timm knows no such weights for this architecture.
    """
    from open_clip.pretrained import get_pretrained_cfg

    tags, of_timm = pretrained_tags(architecture), is_image_only(architecture)
    config: Any = None
    if not of_timm:
        config = get_pretrained_cfg(architecture, tag)
    elif tag in tags:
        config = timm_entry(architecture, tag)
    if not config:
        known = f"It knows {', '.join(sorted(tags))}." if tags else "It knows none for it."
        raise InputError(
            f"backbone.pretrained={tag}: {'timm' if of_timm else 'open_clip'} has no such weights "
            f"for {architecture}.{nearest(tag, tags)} {known}"
        )
    return dict(config)


def pretrained_tags(architecture: str) -> list[str]:
    """Return the tags of an architecture's published weights."""
    from open_clip.pretrained import list_pretrained_tags_by_model

    if is_image_only(architecture):
        return timm_tags(architecture)
    return list(list_pretrained_tags_by_model(architecture))


def fetch_pretrained(architecture: str, tag: str) -> Path:
    """Return the file with published weights; download it, with a progress bar, if necessary.

    A file in the hub's cache is used without a network request. HF_ENDPOINT and HF_HOME set the
    addresses of the hub and the cache, as for all clients of the hub.

    Raises:
        InputError: unknown weights, no network within `PROBE_SECONDS`, or a failed download. The
            message names the weights and says how to give a local file instead.
    """
    from open_clip.pretrained import download_pretrained

    config = pretrained_config(architecture, tag)
    hub_id, url = str(config.get("hf_hub", "")), str(config.get("url", ""))
    try:
        if hub_id:
            cached = cached_pretrained(architecture, tag)
            if cached is not None:
                return cached
            repository, names = _hub_files(hub_id)
            _probe(repository, names[0])
        path = Path(download_pretrained(config))
    except Exception as error:  # the client raises the errors of its transport, which vary
        wanted = f"{hub_id.rstrip('/')} on the Hugging Face hub" if hub_id else url
        raise InputError(
            f"the weights of {architecture} (pretrained={tag}), {wanted}, cannot be downloaded: "
            f"{_reason(error)}. Without a network, copy the file to this machine and set "
            "backbone.checkpoint=FILE; backbone=tiny needs no download."
        ) from error
    return path


def cached_pretrained(architecture: str, tag: str) -> Path | None:
    """Return the file with published weights from the hub's cache, or None.

    Raises:
        InputError: unknown weights.
    """
    hub_id = str(pretrained_config(architecture, tag).get("hf_hub", ""))
    return cached_file(*_hub_files(hub_id)) if hub_id else None


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """Return the first of some files of a repository that is in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no repository of the hub: {error}") from error
    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str) and Path(found).is_file():
            return Path(found)
    return None


def fetch_file(repository: str, names: Sequence[str], wanted: str) -> Path:
    """Return the first of some files that a repository has; download it if necessary.

    A file in the hub's cache is used without a network request.

    Args:
        repository: ORG/NAME.
        names: of the files, best first.
        wanted: what they are, for messages.

    Raises:
        InputError: the repository has none of them, may not be read, or cannot be reached within
            `PROBE_SECONDS`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = cached_file(repository, names)
    if cached is not None:
        return cached
    try:
        _probe(repository, names[0])
        for name in names:
            try:
                return Path(hf_hub_download(repository, name))
            except LocalEntryNotFoundError:  # the hub can no longer be reached
                raise
            except EntryNotFoundError:
                continue
    except Exception as error:  # the client raises the errors of its transport, which vary
        raise InputError(f"{wanted} cannot be downloaded: {refusal(repository, error)}") from error
    raise InputError(
        f"{wanted} cannot be downloaded: the repository has no {' and no '.join(names)}. A model "
        "of transformers: choose open_clip's name of the architecture with "
        "backbone.architecture=, download the file of weights, and give it with "
        "backbone.checkpoint=FILE."
    )


def check_reachable(repository: str, name: str, wanted: str) -> None:
    """Raise InputError unless a file of a repository is cached, or the hub answers in time.

    Args:
        repository, name: of the file.
        wanted: what is needed from the repository, for messages.
    """
    if cached_file(repository, [name]) is not None:
        return
    try:
        _probe(repository, name)
    except Exception as error:  # see fetch_file
        raise InputError(f"{wanted} cannot be downloaded: {refusal(repository, error)}") from error


def refusal(repository: str, error: Exception, offline: str | None = None) -> str:
    """Return why the hub delivers nothing, and the way out.

    Args:
        repository: ORG/NAME.
        error: of the hub's client.
        offline: the way out without a network; None: that of a backbone of open_clip.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    log_in = "run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"{repository} is gated. Accept its terms on its page, then {log_in}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no repository {repository}, or it is private. Check the name; for a "
            f"private one {log_in}."
        )
    offline = offline or (
        f"Without a network, download the repository {repository} elsewhere, copy its files to "
        "this machine, and set backbone.architecture=local-dir:FOLDER; backbone=tiny needs no "
        "download."
    )
    return f"{_reason(error)}. {offline}"


def _hub_files(hub_id: str) -> tuple[str, list[str]]:
    """Return the repository and the files that open_clip tries in it, best first."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = hub_id.rpartition("/")
    if not name:
        return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    file = Path(name)
    safe = [f"{file.stem}.safetensors"] if file.suffix in (".bin", ".pth") else []
    return repository, [*safe, name]


def _probe(repository: str, name: str) -> None:
    """Request a file's metadata once; raise an error if the hub does not answer in time."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    # Without this file the hub still answers, and open_clip tries the next name.
    with contextlib.suppress(EntryNotFoundError):
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=PROBE_SECONDS)


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(" .")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
