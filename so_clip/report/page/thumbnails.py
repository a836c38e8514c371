"""Thumbnails of test images as data URIs, if the run's dataset is still on this machine."""

import base64
import io
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
        return self._made(_place(settings), path)

    def reason(self, settings: dict[str, Any]) -> str:
        """Return why a run's dataset has no images on this machine; empty if it has."""
        source = self._source(_place(settings))
        return source if isinstance(source, str) else ""

    def _make(self, place: "_Place", path: str) -> str | None:
        source = self._source(place)
        with suppress(InputError):
            return None if isinstance(source, str) else thumbnail(source.read(path))
        return None


class _Place(NamedTuple):
    """The dataset (None for user data), its folder, and the folder of the user's cards."""

    dataset: str | None
    folder: str
    cards_dir: str = ""


def _place(settings: dict[str, Any]) -> _Place:
    user = settings.get("user_data", settings.get("own"))  # `own` in older runs
    if isinstance(user, dict):
        return _Place(None, str(user.get("folder") or ""))
    names = ("dataset", "data_root", "cards_dir")
    return _Place(*(str(settings.get(name) or "") for name in names))


def _source(place: _Place) -> ImageSource | str:
    """Return a dataset's images, or the reason why it has none."""
    root = Path(place.folder) if place.folder else None
    cards_dir = Path(place.cards_dir) if place.cards_dir else None
    try:
        if place.dataset is not None:
            return open_images(load_card(place.dataset, cards_dir), root)
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
