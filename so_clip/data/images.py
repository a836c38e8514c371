"""Read images from a dataset's folder or from the package, as RGB; bad images are named."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, how_to_get
from so_clip.data.decode import Unread, Unusable, decode
from so_clip.data.digits import digit_path, load_digits
from so_clip.data.examples import Example
from so_clip.data.lists.splits import dataset_folder, refuse_misplaced
from so_clip.data.pillow_warnings import naming
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import DiskNames
from so_clip.errors import InputError, reason_of
from so_clip.system.threads import in_threads

if TYPE_CHECKING:
    from torch import Tensor

_Result = TypeVar("_Result")


class CorruptImage(InputError):
    """The content of an image's file cannot be decoded. Its `reason` does not name the file.

    A missing file, or a file that the system cannot read, is not corrupt.
    """

    reason = ""


class UnreadFormat(CorruptImage):
    """The file is whole, but its format is not read."""


class ImageSource(Protocol):
    """The source of a dataset's images, by the paths of its examples."""

    def read(self, path: str) -> Image.Image:
        """Return the decoded RGB image; InputError names an image that cannot be read."""

    def content(self, path: str) -> bytes:
        """Return the undecoded content; InputError names an image that cannot be read."""

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of missing images, in order."""


@dataclass(eq=False)
class ImageFolder:
    """The images below one folder.

    Args:
        root: the folder; paths are relative to it and never leave it. A name is found in either
            of its Unicode forms.
    """

    root: Path

    def __post_init__(self) -> None:
        self._names = DiskNames(self.root)

    def read(self, path: str) -> Image.Image:
        """Decode one image as CLIP's reference pipeline does: PIL, converted to RGB.

        As in the reference pipeline, EXIF orientation and colour profiles are not applied, the
        alpha channel is dropped, and an animation gives its first frame. The reference pipeline
        clips grey values above 8 bits, usually to white; they are refused here.

        Args:
            path: relative to `root`, with forward slashes.

        Raises:
            CorruptImage: the named file is truncated, empty, not an image, has grey values above
                8 bits, or is larger than `MAX_PIXELS`.
            InputError: the named file is missing, not a plain file, outside `root`, or cannot be
                read.

        Source: `read_image` in dassl/utils/tools.py of github.com/KaiyangZhou/Dassl.pytorch.
        """
        return self._read(path, decode)

    def content(self, path: str) -> bytes:
        """Return the bytes of one image's file; InputError as in `read`."""
        return self._read(path, lambda stream: stream.read())

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that are not files, in order. No file is opened."""
        # os.path.isfile, unlike Path.is_file, never raises.
        return [path for path in paths if not os.path.isfile(self.root / self._inside(path))]  # noqa: PTH113

    def _inside(self, path: str) -> str:
        if reason := why_outside(path):
            raise InputError(f"{self.root}: the path {path!r} is refused: {reason}.")
        return self._names.find(path)

    def _read(self, path: str, take: Callable[[BinaryIO], _Result]) -> _Result:
        file = self.root / self._inside(path)
        try:
            return _taken(file, take)
        except FileNotFoundError as error:
            raise InputError(
                f"{file}: the image is missing. The split file lists it: complete the dataset, or "
                "use a split file with the available images only."
            ) from error


def read_image(file: Path) -> Image.Image:
    """Decode one file, from any place, as `ImageFolder.read` does.

    Raises:
        CorruptImage: as in `ImageFolder.read`.
        InputError: the file is missing, not a plain file, or cannot be read.
    """
    try:
        return _taken(file, decode)
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file.") from error


class DigitArray:
    """The handwritten digits of the package, by the paths of `digit_path`."""

    def __init__(self) -> None:
        self._images_NHW = load_digits().images_NHW
        self._index = {digit_path(index): index for index in range(len(self._images_NHW))}

    def read(self, path: str) -> Image.Image:
        """Return one digit as an RGB image; InputError for another path."""
        return Image.fromarray(self._image_HW(path)).convert("RGB")

    def content(self, path: str) -> bytes:
        """Return one digit's grey values; InputError for another path."""
        return self._image_HW(path).tobytes()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that are not digits, in order."""
        return [path for path in paths if path not in self._index]

    def _image_HW(self, path: str) -> npt.NDArray[np.uint8]:
        if path not in self._index:
            last = digit_path(len(self._index) - 1)
            raise InputError(f"{path}: there is no such digit; the last one is {last}.")
        return self._images_NHW[self._index[path]]


def open_images(card: DatasetCard, data_root: Path | None) -> ImageSource:
    """Return the source of a dataset's images.

    Args:
        card: the dataset.
        data_root: the folder of all datasets; datasets in a package do not need it.

    Raises:
        InputError: no data root, or no image folder of this dataset in it.
    """
    if card.layout == "digits":
        return DigitArray()
    root = dataset_folder(card, data_root) / card.image_dir
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises on a locked folder
        if data_root is not None:
            refuse_misplaced(card, data_root)
        raise InputError(
            f"{root}: the image folder of {card.title} does not exist. {how_to_get(card)}"
        )
    return ImageFolder(root)


def require_images(images: ImageSource, examples: Sequence[Example], card: DatasetCard) -> None:
    """Check that every image exists, before a run spends time.

    Raises:
        InputError: with the number of missing images, the first of them, and the way out.
    """
    paths = list(dict.fromkeys(example.path for example in examples))
    if missing := images.missing(paths):
        root = getattr(images, "root", card.title)
        way_out = (
            "Add them, or delete their lines from the list."
            if card.layout in USER_LAYOUTS
            else "Complete the dataset, or give a split file with the available images only "
            f"(dataset.split_file=FILE). {how_to_get(card)}"
        )
        raise InputError(
            f"{root}: {len(missing)} of {len(paths)} images of {card.title} are missing, first "
            f"{missing[0]}. {way_out}"
        )


def load_uint8(
    images: ImageSource,
    examples: Sequence[Example],
    progress: bool = True,
    budget_bytes: float = float("inf"),
) -> list["Tensor"] | None:
    """Decode the images of a few-shot draw into memory, in parallel.

    Args:
        images: the source of the images.
        examples: the images. A repeated image is decoded once and shares its tensor.
        progress: show a bar on stderr.
        budget_bytes: limit of all decoded images together.

    Returns:
        One uint8 tensor [3, height, width] per example, in order, at the image's own size. None if
        the images need more than the budget; decoding then stops early.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """
    paths = list(dict.fromkeys(example.path for example in examples))
    hidden = None if progress else True  # None: without a terminal
    decoding = in_threads(
        lambda path: to_tensor(images.read(path)), paths, "decode", unit="image", disable=hidden
    )
    tensors = {}
    with closing(decoding) as decoded:
        for path, tensor in zip(paths, decoded, strict=True):
            budget_bytes -= tensor.nbytes
            if budget_bytes < 0:
                return None
            tensors[path] = tensor
    return [tensors[example.path] for example in examples]


def to_tensor(image: Image.Image) -> "Tensor":
    """Return the pixels of an RGB image as a uint8 tensor [3, height, width]."""
    import torch

    # NumPy copies: torch would start its own threads in every decoding thread.
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def _corrupt(file: Path, reason: str, kind: type[CorruptImage] = CorruptImage) -> CorruptImage:
    error = kind(f"{file}: {reason} on_corrupt=skip runs without it.")
    error.reason = reason
    return error


def _taken(file: Path, take: Callable[[BinaryIO], _Result]) -> _Result:
    """Return what `take` reads from a file; errors become InputError, but for a missing file."""
    try:
        with _open_plain(file) as stream, naming(file):
            return take(stream)
    except (InputError, FileNotFoundError):
        raise
    except Unread as error:
        raise _corrupt(file, str(error), UnreadFormat) from error
    except Unusable as error:
        raise _corrupt(file, str(error)) from error
    # Decoders raise almost any exception for broken data.
    except Exception as error:
        reason = reason_of(error)
        # An error of the system may pass, and does not mean that the image is corrupt.
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise InputError(f"{file}: the image cannot be read ({reason}).") from error
        problem = f"the image cannot be decoded ({reason}). It is damaged or cut short."
        raise _corrupt(file, f"{problem} Fetch it again.") from error


def _open_plain(file: Path) -> BinaryIO:
    status = file.stat()
    # Opening a pipe would wait for a writer forever.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a plain file"
        raise InputError(f"{file}: this is {kind}. Put the image in its place.")
    if status.st_size == 0:
        raise Unusable("the image is empty (0 bytes). Fetch it again.")
    return file.open("rb")
