"""Decode one image with Pillow as CLIP's reference pipeline does, or say why it is refused."""

import io
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from so_clip.data.image_kinds import kind_of

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


class Unusable(Exception):
    """A file that Pillow cannot or must not decode; the message says why."""


class Unread(Unusable):
    """The file is whole, but its format is not read."""


class TooLarge(Unusable):
    """The image has more than `MAX_PIXELS` pixels."""


def why_too_large(stream: BinaryIO) -> str:
    """Return a message if the header says more than `MAX_PIXELS`; "" otherwise, or if no image."""
    try:
        _opened(stream).close()
    except TooLarge as error:
        return str(error).removesuffix(".")  # callers put it into a sentence
    except Exception:
        return ""
    return ""


def decode(stream: BinaryIO) -> Image.Image:
    """Return an RGB image; Unusable, or an error of Pillow, if it cannot be decoded."""
    with _opened(stream) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of Pillow as RGB; Unusable if its grey values do not fit into 8 bits."""
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        _check_fits_8_bits(image)
    return image.convert("RGB")


def _check_fits_8_bits(image: Image.Image) -> None:
    """Refuse grey values that `convert` would clip or round."""
    values_HW = np.asarray(image)
    low, high = values_HW.min(), values_HW.max()
    whole = image.mode != "F" or bool((values_HW == np.floor(values_HW)).all())
    if not (low >= 0 and high <= 255 and whole):  # nan is neither
        raise Unusable(
            f"its grey values, from {low:g} to {high:g}, are not 8-bit values: CLIP's reference "
            "pipeline would clip them. Scale it, and save it with 8 bits per channel."
        )


@cache
def formats() -> tuple[str, ...]:
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
        raise TooLarge(f"the image is too large ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        kind = kind_of(stream)
        if kind and kind.whole and kind.reader not in formats():
            text = f"this is {kind.what}, a format that is not read. {kind.way_out}"
            raise Unread(text) from error
        if kind and not kind.whole:
            raise Unusable(f"this is {kind.what}, not an image. {kind.way_out}") from error
        if kind:
            raise Unusable(
                f"this is {kind.what} that cannot be decoded. It is damaged, or of a kind that its "
                "reader does not know. Convert it to PNG or JPEG, or fetch it again."
            ) from error
        raise Unusable(
            f"not an image, or not in one of the formats {', '.join(formats())}. Fetch it again."
        ) from error
    width, height = image.size
    # Any library may have switched off Pillow's own check, a global setting.
    if width * height > MAX_PIXELS:
        image.close()
        raise TooLarge(
            f"the image is too large: {width} x {height} pixels, above {MAX_PIXELS}. Scale it down."
        )
    return image


def _identified(stream: BinaryIO) -> Image.Image:
    try:
        return Image.open(stream, formats=formats())
    except ValueError:
        # Pillow refuses long texts in a PNG, although they do not affect its pixels.
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
