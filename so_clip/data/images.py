"""Read images from a dataset's folder or from the package, as RGB; bad images are named."""

import io
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, UnidentifiedImageError, features

from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, how_to_get
from so_clip.data.digits import digit_path, load_digits
from so_clip.data.examples import Example
from so_clip.data.image_kinds import kind_of
from so_clip.data.lists.splits import dataset_folder, refuse_misplaced
from so_clip.data.pillow_warnings import naming
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import DiskNames
from so_clip.errors import InputError, reason_of
from so_clip.system.threads import in_threads

if TYPE_CHECKING:
    from torch import Tensor

# Image formats of datasets, for any suffix (Oxford Pets has GIFs with the suffix .jpg). Without
# this list Pillow tries all its formats, and some (PostScript) run other programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
_HEIC = "HEIF"  # Pillow's name of the format that pillow-heif reads
# Pillow's limit against decompression bombs. Such an image takes half a GiB in memory.
MAX_PIXELS = 2 * (1 << 30) // 12
# Modes with values that 8 bits may not hold. Pillow itself reduces 16-bit colours.
_DEEP = ("I", "F")

_PNG = b"\x89PNG\r\n\x1a\n"
_CODECS = ("jpg", "zlib", "libtiff", "webp", "avif", "libjpeg_turbo")

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
        return self._read(path, _decode)

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
            with _open_plain(file) as stream, naming(file):
                return take(stream)
        except FileNotFoundError as error:
            raise InputError(
                f"{file}: the image is missing. The split file lists it: complete the dataset, or "
                "use a split file with the available images only."
            ) from error
        except InputError:
            raise
        except _Unread as error:
            raise _corrupt(file, str(error), UnreadFormat) from error
        except _Unusable as error:
            raise _corrupt(file, str(error)) from error
        # Decoders raise nearly every kind of exception for broken data.
        except Exception as error:
            reason = reason_of(error)
            # An error of the system may pass, and does not mean that the image is corrupt.
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise InputError(f"{file}: the image cannot be read ({reason}).") from error
            problem = f"the image cannot be decoded ({reason}). It is damaged or cut short."
            raise _corrupt(file, f"{problem} Fetch it again.") from error


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
    decode = in_threads(
        lambda path: to_tensor(images.read(path)), paths, "decode", unit="image", disable=hidden
    )
    tensors = {}
    with closing(decode) as decoded:
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


class _Unusable(Exception):
    """A file that Pillow cannot or must not decode; the message says why."""


class _Unread(_Unusable):
    """The file is whole, but its format is not read."""


class _TooLarge(_Unusable):
    """The image has more than `MAX_PIXELS` pixels."""


def _corrupt(file: Path, reason: str, kind: type[CorruptImage] = CorruptImage) -> CorruptImage:
    error = kind(f"{file}: {reason} on_corrupt=skip runs without it.")
    error.reason = reason
    return error


def _open_plain(file: Path) -> BinaryIO:
    status = file.stat()
    # Opening a pipe would wait for a writer forever.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a plain file"
        raise InputError(f"{file}: this is {kind}. Put the image in its place.")
    if status.st_size == 0:
        raise _Unusable("the image is empty (0 bytes). Fetch it again.")
    return file.open("rb")


def why_too_large(stream: BinaryIO) -> str:
    """Return a message if the header says more than `MAX_PIXELS`; "" otherwise, or if no image."""
    try:
        _opened(stream).close()
    except _TooLarge as error:
        return str(error).removesuffix(".")  # callers put it into a sentence
    except Exception:
        return ""
    return ""


def _decode(stream: BinaryIO) -> Image.Image:
    with _opened(stream) as image:
        if image.mode in _DEEP or image.mode.startswith("I;16"):
            _check_fits_8_bits(image)
        return image.convert("RGB")


def _check_fits_8_bits(image: Image.Image) -> None:
    """Refuse grey values that `convert` would clip or round."""
    values_HW = np.asarray(image)
    low, high = values_HW.min(), values_HW.max()
    whole = image.mode != "F" or bool((values_HW == np.floor(values_HW)).all())
    if not (low >= 0 and high <= 255 and whole):  # nan is neither
        raise _Unusable(
            f"its grey values, from {low:g} to {high:g}, are not 8-bit values: CLIP's reference "
            "pipeline would clip them. Scale it, and save it with 8 bits per channel."
        )


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this installation reads."""
    formats = [name for name in FORMATS if name != "AVIF" or features.check("avif")]
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
        formats.append(_HEIC)
    return tuple(formats)


def decoder_versions() -> list[str | None]:
    """Return the versions of what decodes images, since pixels can depend on them."""
    try:
        heic: str | None = version("pillow-heif")
    except PackageNotFoundError:
        heic = None
    return [PIL.__version__, *map(features.version, _CODECS), heic]


def _opened(stream: BinaryIO) -> Image.Image:
    try:
        image = _identified(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _TooLarge(f"the image is too large ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        kind = kind_of(stream)
        if kind and kind.whole and kind.reader not in _formats():
            text = f"this is {kind.what}, a format that is not read. {kind.way_out}"
            raise _Unread(text) from error
        if kind and not kind.whole:
            raise _Unusable(f"this is {kind.what}, not an image. {kind.way_out}") from error
        if kind:
            raise _Unusable(
                f"this is {kind.what} that cannot be decoded. It is damaged, or of a kind that its "
                "reader does not know. Convert it to PNG or JPEG, or fetch it again."
            ) from error
        raise _Unusable(
            f"not an image, or not in one of the formats {', '.join(_formats())}. Fetch it again."
        ) from error
    width, height = image.size
    # Any library may have switched off Pillow's own check, a global setting.
    if width * height > MAX_PIXELS:
        image.close()
        raise _TooLarge(
            f"the image is too large: {width} x {height} pixels, above {MAX_PIXELS}. Scale it down."
        )
    return image


def _identified(stream: BinaryIO) -> Image.Image:
    try:
        return Image.open(stream, formats=_formats())
    except ValueError:
        # Pillow refuses long texts in a PNG, which have nothing to do with its pixels.
        stream.seek(0)
        data = stream.read()
        if not data.startswith(_PNG):
            raise
        return Image.open(io.BytesIO(_without_texts(data)), formats=("PNG",))


def _without_texts(png: bytes) -> bytes:
    """Return a PNG without its chunks of text."""
    parts, start = [_PNG], len(_PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")  # length, kind, checksum
        if png[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            parts.append(png[start:end])
        start = end
    return b"".join(parts)
