"""The names of architectures, known without torch, so an unknown name is refused early.

A name is "tiny", a name that open_clip lists, or the place of a model that open_clip reads:
`hf-hub:ORG/NAME`, a repository of the Hugging Face hub, or `local-dir:PATH`, a folder. An image
model without a text tower is `timm:NAME`, or `timm:NAME@PIXELS` for another size of its images.
"""

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from so_clip.errors import InputError, nearest

TINY = "tiny"
HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's prefixes
TIMM = "timm:"
# A typing error must not fill the memory with position embeddings.
MOST_PIXELS = 2048
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
# A function that timm registers as a model.
_REGISTERED = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_LONGEST_REPOSITORY = 96  # characters; the hub's own limit
_SHOWN_FOLDER = 60  # characters of a folder's name in other names


def is_place(name: str) -> bool:
    """Return whether a name is a repository of the hub or a folder."""
    return name.startswith((HUB, FOLDER))


class TimmName(NamedTuple):
    """An image model of timm.

    Attributes:
        model: timm's name, without a tag.
        pixels: side of its images; None: timm's default.
    """

    model: str
    pixels: int | None


def is_image_only(name: str) -> bool:
    """Return whether a name is `timm:NAME`, an image model without a text tower."""
    return name.startswith(TIMM)


def timm_name(name: str) -> TimmName:
    """Return timm's name and the size of images of `timm:NAME[@PIXELS]`.

    Raises:
        InputError: the size is no number of pixels.
    """
    model, has_size, size = name.removeprefix(TIMM).partition("@")
    if has_size and not (size.isascii() and size.isdigit() and 2 <= int(size) <= MOST_PIXELS):
        raise InputError(
            f"backbone.architecture={name}: after @ must be the side of the images, 2 to "
            f"{MOST_PIXELS} pixels, such as {TIMM}{model}@128."
        )
    return TimmName(model, int(size) if has_size else None)


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
    """Raise InputError unless "tiny", open_clip or timm has the name, or it has a place's form.

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
    if is_image_only(name):
        _check_timm(name)
        return
    known = _of_open_clip()
    if name != TINY and not is_place(name) and name not in known:
        raise InputError(
            f"backbone.architecture={name}: open_clip has no such model."
            f"{nearest(name, known)} `python -m so_clip backbones` lists all {len(known)}. A "
            f"repository of the hub is {HUB}ORG/NAME, a folder {FOLDER}PATH, and an image model of "
            f"timm {TIMM}NAME."
        )


def _check_timm(name: str) -> None:
    model = timm_name(name).model
    plain, _, tag = model.partition(".")
    known = _of_timm()
    if plain in known and tag:
        raise InputError(
            f"backbone.architecture={name}: {tag} is a tag of weights. Set "
            f"backbone.architecture={name.replace(f'.{tag}', '', 1)} backbone.pretrained={tag}."
        )
    if model not in known:
        raise InputError(
            f"backbone.architecture={name}: timm has no such model.{nearest(model, known)} "
            f"`python -c 'import timm; print(timm.list_models())'` lists all {len(known)}."
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


@cache
def _of_timm() -> frozenset[str]:
    # Importing timm would import torch, so this reads the names where timm registers them.
    spec = find_spec("timm")
    folders = spec.submodule_search_locations if spec else None
    return frozenset(
        name
        for folder in folders or ()
        for file in Path(folder).glob("models/*.py")
        for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))
    )
