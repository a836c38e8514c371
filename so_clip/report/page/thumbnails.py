"""Small pictures of test images as data URIs, from the datasets that are still there."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from so_clip.data.cards.card import load_card
from so_clip.data.images import ImageFolder, ImageSource, open_images
from so_clip.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the longer side. Images that are hardly larger than icons are kept as they are.
SIDE, ICON, QUALITY = 96, 64, 72
# In place of a dataset's name, for one's own images: their folder says which they are.
OWN = ""


class Thumbnails:
    """Makes each picture once, and remembers why a dataset has none.

    Attributes:
        made: data URIs by dataset, data root and path.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, str, str], str] = {}
        self._sources: dict[tuple[str, str], ImageSource | str] = {}

    def uri(self, settings: dict[str, Any], path: str) -> str | None:
        """Return one test image of a run's dataset; None if it cannot be had."""
        dataset, root = self._place(settings)
        source = self._source(dataset, root)
        key = (dataset, root, path)
        if isinstance(source, str):
            return None
        if key not in self.made:
            try:
                self.made[key] = thumbnail(source.read(path))
            except InputError:
                return None
        return self.made[key]

    def reason(self, settings: dict[str, Any]) -> str:
        """Return why a run's dataset has no images at hand; nothing if it has."""
        source = self._source(*self._place(settings))
        return source if isinstance(source, str) else ""

    def _place(self, settings: dict[str, Any]) -> tuple[str, str]:
        own = settings.get("own")
        if isinstance(own, dict):
            return OWN, str(own.get("folder") or "")
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
    if dataset != OWN:
        return open_images(load_card(dataset), root)
    if root is None or not root.is_dir():
        raise InputError(f"{root}: the folder of one's own images is not there any more.")
    return ImageFolder(root)


def thumbnail(image: "Image") -> str:
    """Return an RGB image, made small, as a data URI: PNG if it is an icon, JPEG if not."""
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
