"""Images from files, from Pillow or from pixels, as squares for the image tower."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from so_clip.data.batches import Pixels, put_square
from so_clip.data.decode import Unusable, to_rgb
from so_clip.data.images import CorruptImage, read_image
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError, reason_of

# A file, an image of Pillow, or uint8 pixels: a tensor [3, height, width] as in torchvision, or an
# array [height, width, 3] or [height, width] (grey) as in Pillow.
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | Tensor | npt.NDArray[np.uint8]
_FORMS = "a tensor [3, height, width], or an array [height, width, 3] or [height, width]"


def path_of(picture: Picture) -> str | None:
    """Return the path of a file as it was given; None for an image without a file."""
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else None


class Pictures:
    """Images by their place in a list. An image that cannot be read does not stop its batch.

    Args:
        pictures: the images.
        pixels: the test transform of the model.
        raises: raise the error of such an image instead of keeping it.

    Attributes:
        errors: by place, the errors of images that could not be read.
    """

    def __init__(self, pictures: Sequence[Picture], pixels: TestPixels, raises: bool) -> None:
        self._pictures, self._pixels, self._raises = pictures, pixels, raises
        self.errors: dict[int, InputError] = {}
        # Pillow reads a file when its image is first used. Two threads must not do this for one
        # image.
        self._lock = threading.Lock()

    def fill(self, index: int, out_CHW: Pixels) -> None:
        """Write the test-time square of an image into an array; black for one with an error.

        Raises:
            InputError: the image cannot be read, and `raises` is true. The message names its path,
                or its place in the list.
        """
        try:
            picture = open_picture(self._pictures[index], f"image {index}", self._lock)
            put_square(picture, self._pixels, out_CHW)
        except InputError as error:
            if self._raises:
                raise
            self.errors[index] = error
            out_CHW[...] = 0


def open_picture(picture: Picture, place: str, lock: threading.Lock) -> Image.Image:
    """Return an image as RGB.

    Args:
        picture: a file, an image of Pillow, or pixels.
        place: names an image without a file in messages.
        lock: held while Pillow may read a file.

    Raises:
        InputError: the image cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        try:
            return read_image(Path(picture))
        except CorruptImage as error:
            raise InputError(f"{os.fspath(picture)}: {error.reason}") from error
    if isinstance(picture, (Tensor, np.ndarray)):
        return Image.fromarray(_pixels(picture, place))
    if not isinstance(picture, Image.Image):
        raise InputError(
            f"{place}: is {type(picture).__name__}. Give a path, an image of Pillow, or uint8 "
            f"pixels: {_FORMS}."
        )
    try:
        with lock:
            return to_rgb(picture)
    except Unusable as error:
        raise InputError(f"{place}: {error}") from error
    # Decoders raise almost any exception for broken data.
    except Exception as error:
        raise InputError(f"{place}: cannot be decoded ({reason_of(error)}).") from error


def _pixels(picture: Tensor | npt.NDArray[np.uint8], place: str) -> Pixels:
    """Return pixels as an array [height, width, 3]; InputError for another shape or type."""
    shape, dtype = list(picture.shape), str(picture.dtype).removeprefix("torch.")
    last = shape[0] if isinstance(picture, Tensor) and shape else shape[-1] if shape else 0
    is_grey = isinstance(picture, np.ndarray) and len(shape) == 2
    if dtype != "uint8" or not (is_grey or (len(shape) == 3 and last == 3)) or 0 in shape:
        raise InputError(
            f"{place}: has the type {dtype} and the shape {shape}. Pixels must be uint8: {_FORMS}."
        )
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().movedim(0, -1).numpy()
    pixels_HWC = np.repeat(picture[:, :, None], 3, axis=2) if is_grey else picture
    return np.ascontiguousarray(pixels_HWC)
