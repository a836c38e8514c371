"""The names of architectures. Needs no torch, so an unknown name is refused early.

A name is "tiny", a name that open_clip lists, or the place of a model that open_clip reads:
`hf-hub:ORG/NAME`, a repository of the Hugging Face hub, or `local-dir:PATH`, a folder.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from so_clip.errors import InputError, nearest

TINY = "tiny"
HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's prefixes
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_LONGEST_REPOSITORY = 96  # characters; the hub's own limit
_SHOWN_FOLDER = 60  # characters of a folder's name in other names


def is_place(name: str) -> bool:
    """Return whether a name is a repository of the hub or a folder."""
    return name.startswith((HUB, FOLDER))


def folder_of(name: str) -> Path | None:
    """Return the folder of `local-dir:PATH`, absolute; None for other names."""
    if not name.startswith(FOLDER):
        return None
    return Path(os.path.abspath(Path(name.removeprefix(FOLDER)).expanduser()))  # noqa: PTH100


def absolute(name: str) -> str:
    """Return a name that means the same in every working folder."""
    folder = folder_of(name)
    return name if folder is None or name == FOLDER else f"{FOLDER}{folder}"


def repository_of(name: str) -> str | None:
    """Return the repository of `hf-hub:ORG/NAME`; None for other names."""
    return name.removeprefix(HUB) if name.startswith(HUB) else None


def without_path(name: str) -> str:
    """Return a name for records: that of a folder has no path of this machine."""
    folder = folder_of(name)
    return name if folder is None else f"{FOLDER}{folder.name[:_SHOWN_FOLDER]}"


def file_name(name: str) -> str:
    """Return a name as a part of a file's name."""
    plain = without_path(name).lower().replace("/", "_")
    return re.sub(r"[^\w.-]+", "_", plain)


def check_architecture(name: str) -> None:
    """Raise InputError unless `name` is "tiny", or open_clip knows it, or it has a place's form.

    The message has the nearest names. Whether there is such a folder or repository is not checked.
    """
    repository = repository_of(name)
    if repository is not None and (
        not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST_REPOSITORY
    ):
        raise InputError(
            f"backbone.architecture={name}: must be {HUB}ORG/NAME, such as "
            f"{HUB}imageomics/bioclip, without an address or a file."
        )
    if name == FOLDER:
        raise InputError(f"backbone.architecture={name}: must be {FOLDER}PATH, with a folder.")
    known = _of_open_clip()
    if name != TINY and not is_place(name) and name not in known:
        raise InputError(
            f"backbone.architecture={name}: open_clip has no such model."
            f"{nearest(name, known)} `python -m so_clip backbones` lists all {len(known)}. A "
            f"repository of the hub is {HUB}ORG/NAME, and a folder {FOLDER}PATH."
        )


def model_file(name: str) -> Path | None:
    """Return open_clip's file with the sizes of an architecture; None for other names."""
    return _of_open_clip().get(name)


def _of_open_clip() -> dict[str, Path]:
    # Importing open_clip would import torch, so this looks at the files that list_models() reads.
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return {
        file.stem: file
        for folder in folders or ()
        for file in Path(folder).glob("model_configs/*.json")
    }
