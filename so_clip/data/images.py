"""Reading images: from a dataset's folder or from the package, always RGB, or refused by name."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, how_to_get
from so_clip.data.digits import digit_path, load_digits
from so_clip.data.examples import Example
from so_clip.data.lists.splits import dataset_folder
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Formats that datasets come in, whatever the file's suffix says (Oxford Pets has GIFs named .jpg).
# Pillow would try them all, and some (PostScript) run other programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
# Pillow's own limit against decompression bombs; decoded, such an image takes half a GiB.
MAX_PIXELS = 2 * (1 << 30) // 12
# Modes whose values 8 bits may not hold; Pillow itself halves colours of 16 bits.
_DEEP = ("I", "F")

_Taken = TypeVar("_Taken")


class CorruptImage(InputError):
    """What is in an image's file cannot become an image. Its `reason` names no file.

    Files that are missing, or that the system does not let one read, are not corrupt.
    """

    reason = ""


class ImageSource(Protocol):
    """Where the images of a dataset are read from, by the paths of its examples."""

    def read(self, path: str) -> Image.Image:
        """Return the decoded RGB image; InputError names what cannot be read."""

    def content(self, path: str) -> bytes:
        """Return what the image is decoded from; InputError names what cannot be read."""

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that are not there, in order."""


class ImageFolder:
    """The images below one folder.

    Args:
        root: the folder; paths are relative to it and never leave it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> Image.Image:
        """Decode one image as CLIP's reference pipeline does: PIL, converted to RGB.

        The orientation that a camera notes in EXIF and colour profiles are not applied, opacity is
        dropped, and of an animation the first frame is taken, since the reference pipeline does so.
        Grey values that 8 bits do not hold would be clipped by it, to white as a rule: refused.

        Args:
            path: relative to `root`, with forward slashes.

        Raises:
            CorruptImage: naming the file, when it is truncated, empty, no image, of grey values
                that 8 bits do not hold, or larger than `MAX_PIXELS`.
            InputError: naming the file, when it is missing, no plain file, outside `root`, or not
                to be read.

        Source: `read_image` in dassl/utils/tools.py of github.com/KaiyangZhou/Dassl.pytorch.
        """
        return self._read(path, _decode)

    def content(self, path: str) -> bytes:
        """Return one image's file as it is, undecoded; InputError as in `read`."""
        return self._read(path, lambda stream: stream.read())

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that are not files, in order. Nothing is opened."""
        # os.path.isfile, unlike Path.is_file, never raises.
        return [path for path in paths if not os.path.isfile(self.root / self._inside(path))]  # noqa: PTH113

    def _inside(self, path: str) -> str:
        if reason := why_outside(path):
            raise InputError(f"{self.root}: the path {path!r} is refused: {reason}.")
        return path

    def _read(self, path: str, take: Callable[[BinaryIO], _Taken]) -> _Taken:
        file = self.root / self._inside(path)
        try:
            with _open_plain(file) as stream:
                return take(stream)
        except FileNotFoundError as error:
            raise InputError(
                f"{file}: the image is missing. The split file lists it: complete the dataset, or "
                "use a split file that is cut down to the images at hand."
            ) from error
        except _OutOfPlace as error:
            raise InputError(f"{file}: {error}") from error
        except _Unusable as error:
            raise _corrupt(file, str(error)) from error
        # Decoders meet broken data with nearly every exception there is.
        except Exception as error:
            # What the system refuses, which it may grant another time, says nothing of the image.
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise InputError(f"{file}: the image cannot be read ({_reason(error)}).") from error
            reason = f"the image cannot be decoded ({_reason(error)}). It is damaged or cut short."
            raise _corrupt(file, f"{reason} Fetch it again.") from error


class DigitArray:
    """The handwritten digits of the package, by the paths of `digit_path`."""

    def __init__(self) -> None:
        self._images_NHW = load_digits().images_NHW
        self._index = {digit_path(index): index for index in range(len(self._images_NHW))}

    def read(self, path: str) -> Image.Image:
        """Return one digit as an RGB image; InputError for a path that is no digit."""
        return Image.fromarray(self._image_HW(path)).convert("RGB")

    def content(self, path: str) -> bytes:
        """Return one digit's grey values; InputError for a path that is no digit."""
        return self._image_HW(path).tobytes()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that are no digits, in order."""
        return [path for path in paths if path not in self._index]

    def _image_HW(self, path: str) -> npt.NDArray[np.uint8]:
        if path not in self._index:
            last = digit_path(len(self._index) - 1)
            raise InputError(f"{path}: there is no such digit; the last one is {last}.")
        return self._images_NHW[self._index[path]]


def open_images(card: DatasetCard, data_root: Path | None) -> ImageSource:
    """Return where the images of a dataset are read from.

    Args:
        card: the dataset.
        data_root: the folder of all datasets; not needed for those that come in a package.

    Raises:
        InputError: no data root, or no image folder of this dataset in it.
    """
    if card.layout == "digits":
        return DigitArray()
    root = dataset_folder(card, data_root) / card.image_dir
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises on a locked folder
        raise InputError(
            f"{root}: the image folder of {card.title} does not exist. {how_to_get(card)}"
        )
    return ImageFolder(root)


def require_images(images: ImageSource, examples: Sequence[Example], card: DatasetCard) -> None:
    """Check that every image is there, before a run spends time on the first of them.

    Raises:
        InputError: saying how many are missing, the first of them, and what to do.
    """
    paths = list(dict.fromkeys(example.path for example in examples))
    if missing := images.missing(paths):
        root = getattr(images, "root", card.title)
        way_out = (
            "Add them, or drop their lines from the list."
            if card.layout in USER_LAYOUTS
            else "Complete the dataset, or give a split file that is cut down to the images at "
            f"hand (dataset.split_file=FILE). {how_to_get(card)}"
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
        images: where to read them.
        examples: what to read. An image that repeats is decoded once and shares its tensor.
        progress: show a bar on stderr.
        budget_bytes: what the decoded images may take together.

    Returns:
        One uint8 tensor [3, height, width] an example, in order, at the images' own sizes. None if
        that is more than the budget; then no more than it, and what is under way, was decoded.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """
    from tqdm import tqdm

    paths = list(dict.fromkeys(example.path for example in examples))
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        try:
            decoded = pool.map(lambda path: to_tensor(images.read(path)), paths)
            bar = tqdm(
                decoded, "decode", len(paths), unit="image", disable=None if progress else True
            )
            tensors = {}
            for path, tensor in zip(paths, bar, strict=True):
                budget_bytes -= tensor.nbytes
                if budget_bytes < 0:
                    return None
                tensors[path] = tensor
        finally:
            # After an error nobody wants the rest.
            pool.shutdown(cancel_futures=True)
    return [tensors[example.path] for example in examples]


def to_tensor(image: Image.Image) -> "Tensor":
    """Return the pixels of an RGB image as a uint8 tensor [3, height, width]."""
    import torch

    # By numpy: torch would start a team of its own threads in every decoding thread.
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


class _OutOfPlace(Exception):
    """What lies where an image should be is none at first sight."""


class _Unusable(Exception):
    """What is wrong with a file that Pillow must not, or cannot, be asked about."""


class _TooLarge(_Unusable):
    """Of more pixels than are decoded."""


def _corrupt(file: Path, reason: str) -> CorruptImage:
    error = CorruptImage(f"{file}: {reason} A run with on_corrupt=skip does without it.")
    error.reason = reason
    return error


def _open_plain(file: Path) -> BinaryIO:
    status = file.stat()
    # Opening a pipe waits for a writer, for ever.
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a plain file"
        raise _OutOfPlace(f"{what} lies where an image should be. Put the image in its place.")
    if status.st_size == 0:
        raise _Unusable("the image is empty (0 bytes). Fetch it again.")
    return file.open("rb")


def why_too_large(stream: BinaryIO) -> str:
    """Say that an image has more than `MAX_PIXELS`, from its header alone; "" if it has not.

    What is no image at all is not large: whoever reads it will be told.
    """
    try:
        _opened(stream).close()
    except _TooLarge as error:
        return str(error).removesuffix(".")  # a part of others' sentences
    except Exception:
        return ""
    return ""


def _decode(stream: BinaryIO) -> Image.Image:
    with _opened(stream) as image:
        if image.mode in _DEEP or image.mode.startswith("I;16"):
            _check_fits_8_bits(image)
        return image.convert("RGB")


def _check_fits_8_bits(image: Image.Image) -> None:
    """Refuse grey values that `convert` would clip or round, an image of 16 bits to white."""
    values_HW = np.asarray(image)
    low, high = values_HW.min(), values_HW.max()
    whole = image.mode != "F" or bool((values_HW == np.floor(values_HW)).all())
    if not (low >= 0 and high <= 255 and whole):  # nan is neither
        raise _Unusable(
            f"its grey values, from {low:g} to {high:g}, are not those of 8 bits: CLIP's reference "
            "pipeline would clip them. Save it with 8 bits a channel, scaled as its maker meant."
        )


def _opened(stream: BinaryIO) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _TooLarge(f"the image is too large ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        raise _Unusable(
            f"not an image, or of none of the formats {', '.join(FORMATS)}. Fetch it again."
        ) from error
    width, height = image.size
    # Pillow's check is a global that any library may have switched off.
    if width * height > MAX_PIXELS:
        image.close()
        raise _TooLarge(
            f"the image is too large: {width} x {height} pixels, above {MAX_PIXELS}. Scale it down."
        )
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
