"""Images that a program gives: a list of them, or a dataset in memory."""

import csv
import io
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from so_clip.data.images import read_image
from so_clip.errors import InputError
from so_clip.predict.pictures import Picture, open_picture, path_of

# Labelled images: the images of each class, or pairs of an image and the name of its class.
Labelled: TypeAlias = Mapping[str, Sequence[Picture]] | Sequence[tuple[Picture, str]]
LIST_FILE = "list.csv"


def listed(images: Any) -> list[Picture]:
    """Return images as a list; InputError for a single image."""
    is_pixels = isinstance(images, (Tensor, np.ndarray)) and images.ndim < 4
    if isinstance(images, (str, os.PathLike, Image.Image)) or is_pixels:
        name = f" {os.fspath(images)}" if isinstance(images, (str, os.PathLike)) else ""
        raise InputError(f"images:{name} is a single image. Give a list of images: [image].")
    if not isinstance(images, Iterable):
        raise InputError(f"images: is {type(images).__name__}. Give a list of images.")
    return list(images)


class GivenImages:
    """Images of a program, as the source of a dataset's images.

    Attributes:
        pictures: by the path in the dataset's lists.
    """

    def __init__(self, pictures: Mapping[str, Picture]) -> None:
        self.pictures = pictures
        self._lock = threading.Lock()

    @property
    def files(self) -> dict[str, str]:
        """The files among the images, by the path in the lists."""
        found = {path: path_of(picture) for path, picture in self.pictures.items()}
        return {path: file for path, file in found.items() if file is not None}

    def read(self, path: str) -> Image.Image:
        """Return an image as RGB; InputError names an image that cannot be read."""
        picture = self.pictures[path]
        if isinstance(picture, (str, os.PathLike)):
            return read_image(Path(picture))  # raises what on_corrupt=skip looks for
        return open_picture(picture, path, self._lock)

    def content(self, path: str) -> bytes:
        """Return the bytes of a file, or the pixels of an image in memory."""
        file = path_of(self.pictures[path])
        if file is not None:
            return Path(file).read_bytes()
        image = self.read(path)
        return f"{image.size}".encode() + image.tobytes()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of files that do not exist, in order."""
        files = [path_of(self.pictures[path]) for path in paths]
        return [file for file in files if file is not None and not Path(file).is_file()]


def given_images(
    train: Labelled, val: Labelled | None, test: Labelled | None
) -> tuple[GivenImages, str]:
    """Return images in memory, and the CSV list of the dataset that they make.

    Without test images, the list names the first image of each class as test image too: a dataset
    needs some.

    Raises:
        InputError: an argument has another form.
    """
    splits = {"train": _pairs(train, "source")}
    splits |= {"val": _pairs(val, "val")} if val is not None else {}
    firsts = {name: (picture, name) for picture, name in reversed(splits["train"])}
    splits["test"] = [*firsts.values()] if test is None else _pairs(test, "test")
    pictures: dict[str, Picture] = {}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("path", "label", "split"))
    for split, pairs in splits.items():
        for index, (picture, name) in enumerate(pairs):
            path = f"{split}/{index:07d}"
            pictures[path] = picture
            writer.writerow((path, name, split))
    return GivenImages(pictures), text.getvalue()


def _pairs(labelled: Any, argument: str) -> list[tuple[Picture, str]]:
    form = "Give {class name: images}, or a list of (image, class name)."
    if isinstance(labelled, Mapping):
        pairs = []
        for name, images in labelled.items():
            try:
                pairs += [(image, name) for image in listed(images)]
            except InputError as error:
                raise InputError(f"{argument}[{name!r}]: {error}") from error
    elif isinstance(labelled, Iterable) and not isinstance(labelled, (str, bytes, Tensor)):
        pairs = list(labelled)
    else:
        raise InputError(f"{argument}: is {type(labelled).__name__}. {form}")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"{argument}[{index}]: is no pair. {form}")
        if not isinstance(pair[1], str) or not pair[1].strip():
            raise InputError(f"{argument}: {pair[1]!r} is no name of a class. {form}")
    if not pairs:
        raise InputError(f"{argument}: holds no images. {form}")
    return [(picture, name) for picture, name in pairs]
