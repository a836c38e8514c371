"""Thumbnails of test images as data URIs, if the run's dataset is still on this machine."""

import base64
import io
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from so_clip.data.cards.card import load_card
from so_clip.data.images import ImageFolder, ImageSource, open_images
from so_clip.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the longer side; images up to `ICON` are not scaled, so their pixels stay visible.
SIDE, ICON, QUALITY = 96, 64, 72


class Thumbnails:
    """Makes thumbnails of test images; each is made once, and each dataset opened once."""

    def __init__(self) -> None:
        self._source, self._made = cache(_source), cache(self._make)

    def uri(self, settings: dict[str, Any], path: str) -> str | None:
        """Return the thumbnail of one test image of a run; None if the image cannot be read."""
        return self._made(*_place(settings), path)

    def reason(self, settings: dict[str, Any]) -> str:
        """Return why a run's dataset has no images on this machine; empty if it has."""
        source = self._source(*_place(settings))
        return source if isinstance(source, str) else ""

    def _make(self, dataset: str | None, folder: str, path: str) -> str | None:
        source = self._source(dataset, folder)
        with suppress(InputError):
            return None if isinstance(source, str) else thumbnail(source.read(path))
        return None


def _place(settings: dict[str, Any]) -> tuple[str | None, str]:
    """Return the dataset (None for user data) and its folder."""
    user = settings.get("user_data", settings.get("own"))  # `own` in older runs
    if isinstance(user, dict):
        return None, str(user.get("folder") or "")
    return str(settings.get("dataset")), str(settings.get("data_root") or "")


def _source(dataset: str | None, folder: str) -> ImageSource | str:
    """Return a dataset's images, or the reason why it has none."""
    root = Path(folder) if folder else None
    try:
        if dataset is not None:
            return open_images(load_card(dataset), root)
    except InputError as error:
        return str(error)
    if root is None or not root.is_dir():
        return f"{root}: the folder of the user's images no longer exists."
    return ImageFolder(root)


def thumbnail(image: "Image") -> str:
    """Return an RGB image as a data URI: a scaled JPEG, or an icon as PNG."""
    stream, kind = io.BytesIO(), "png" if max(image.size) <= ICON else "jpeg"
    if kind == "png":
        image.save(stream, "PNG", optimize=True)
    else:
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
