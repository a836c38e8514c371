"""Thumbnails of test images as data URIs, if the run's dataset is still on this machine."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from so_clip.data.cards.card import load_card
from so_clip.data.images import ImageFolder, ImageSource, open_images
from so_clip.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the longer side; images up to `ICON` are not scaled, so their pixels stay visible.
SIDE, ICON, QUALITY = 96, 64, 72
# The dataset name of user data; the folder tells which data it is.
USER_DATA = ""


class Thumbnails:
    """Makes each thumbnail once, and stores why a dataset has none."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, str], str | None] = {}
        self._sources: dict[tuple[str, str], ImageSource | str] = {}

    def uri(self, settings: dict[str, Any], path: str) -> str | None:
        """Return the thumbnail of one test image of a run; None if the image cannot be read."""
        dataset, root = self._place(settings)
        source = self._source(dataset, root)
        if isinstance(source, str):
            return None
        key = (dataset, root, path)
        if key not in self._made:
            try:
                self._made[key] = thumbnail(source.read(path))
            except InputError:
                self._made[key] = None
        return self._made[key]

    def reason(self, settings: dict[str, Any]) -> str:
        """Return why a run's dataset has no images on this machine; empty if it has."""
        source = self._source(*self._place(settings))
        return source if isinstance(source, str) else ""

    def _place(self, settings: dict[str, Any]) -> tuple[str, str]:
        user = settings.get("user_data", settings.get("own"))  # `own` in older runs
        if isinstance(user, dict):
            return USER_DATA, str(user.get("folder") or "")
        return str(settings.get("dataset")), str(settings.get("data_root") or "")

    def _source(self, dataset: str, root: str) -> ImageSource | str:
        if (dataset, root) not in self._sources:
            source: ImageSource | str
            try:
                source = _opened(dataset, Path(root) if root else None)
            except InputError as error:
                source = str(error)
            self._sources[dataset, root] = source
        return self._sources[dataset, root]


def _opened(dataset: str, root: Path | None) -> ImageSource:
    if dataset != USER_DATA:
        return open_images(load_card(dataset), root)
    if root is None or not root.is_dir():
        raise InputError(f"{root}: the folder of the user's images no longer exists.")
    return ImageFolder(root)


def thumbnail(image: "Image") -> str:
    """Return an RGB image as a data URI: a scaled JPEG, or an icon as PNG."""
    stream = io.BytesIO()
    if max(image.size) <= ICON:
        image.save(stream, "PNG", optimize=True)
        return _uri("image/png", stream.getvalue())
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return _uri("image/jpeg", stream.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
