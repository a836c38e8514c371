"""Unusual images are decoded as in CLIP's reference pipeline, or refused by name."""

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from so_clip.data.images import CorruptImage, ImageFolder
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError


def _picture(width: int = 20, height: int = 10, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _read(folder: Path, data: bytes, name: str = "x.jpg") -> Image.Image:
    (folder / name).write_bytes(data)
    return ImageFolder(folder).read(name)


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG of any depth and kind of colour; Pillow writes a few of them only."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _palette_with_transparency(whole: bool) -> bytes:
    """Return a PNG whose palette has one transparent colour, or an opacity for each."""
    transparency: int | bytes = 0 if whole else bytes(range(256))
    return _encoded(_picture(mode="P"), "PNG", transparency=transparency)


def _with_opacity(kind: str) -> bytes:
    rgba = _picture(mode="RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    return _encoded(rgba, kind, **({"lossless": True} if kind == "WEBP" else {}))


def _frames(kind: str, **options: object) -> bytes:
    others = [_picture(seed=seed) for seed in (1, 2)]
    return _encoded(_picture(), kind, save_all=True, append_images=others, **options)


def _profiled() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return _encoded(_picture(), "JPEG", icc_profile=profile)


def _grey(values: np.ndarray, kind: str = "PNG") -> bytes:
    return _encoded(Image.fromarray(values), kind)


_DEEP_VALUES = np.arange(200).reshape(10, 20)
CONVERTED: dict[str, Callable[[], bytes]] = {
    "CMYK JPEG, inverted as Adobe's": lambda: _encoded(_picture(mode="CMYK"), "JPEG"),
    "CMYK TIFF": lambda: _encoded(_picture(mode="CMYK"), "TIFF"),
    "YCbCr TIFF": lambda: _encoded(_picture(mode="YCbCr"), "TIFF"),
    "1-bit PNG": lambda: _encoded(_picture(mode="1"), "PNG"),
    "1-bit TIFF, CCITT": lambda: _encoded(_picture(mode="1"), "TIFF", compression="group4"),
    "grey with opacity": lambda: _encoded(_picture(mode="L").convert("LA"), "PNG"),
    "colour with opacity, PNG": lambda: _with_opacity("PNG"),
    "colour with opacity, WebP": lambda: _with_opacity("WEBP"),
    "palette, one colour transparent": lambda: _palette_with_transparency(True),
    "palette, opacities": lambda: _palette_with_transparency(False),
    "animated GIF": lambda: _frames("GIF"),
    "animated PNG": lambda: _frames("PNG"),
    "animated WebP": lambda: _frames("WEBP", lossless=True),
    "several pages": lambda: _frames("TIFF"),
    "MPO, two views": lambda: _frames("MPO"),
    "with a colour profile": _profiled,
    "progressive JPEG": lambda: _encoded(_picture(), "JPEG", progressive=True),
    "16-bit colours": lambda: _png(4, 1, 16, 2, b"\0" + bytes(range(24))),
    "16-bit grey with opacity": lambda: _png(4, 1, 16, 4, b"\0" + bytes(range(16))),
    "16-bit grey of 8-bit values": lambda: _grey(_DEEP_VALUES.astype(np.uint16)),
    "32-bit grey of 8-bit values": lambda: _grey(_DEEP_VALUES.astype(np.int32), "TIFF"),
    "real grey of 8-bit values": lambda: _grey(_DEEP_VALUES.astype(np.float32), "TIFF"),
    "one pixel": lambda: _encoded(_picture(1, 1), "PNG"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("kind", CONVERTED)
def test_odd_images_are_decoded_as_in_the_reference(kind, tmp_path):
    data = CONVERTED[kind]()
    image = _read(tmp_path, data)
    assert image.mode == "RGB"
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert TestPixels(32).square(image).size == (32, 32)


def test_animations_are_their_first_frame(tmp_path):
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        image = _read(tmp_path, _frames(kind, **options))
        assert image.tobytes() == _picture().tobytes()


def test_adobes_inverted_inks_keep_their_colours(tmp_path):
    orange = Image.new("RGB", (16, 16), (250, 130, 20))
    image = _read(tmp_path, _encoded(orange.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(image, int) - (250, 130, 20)).max() <= 4


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        (np.array([[0, 65535]], np.uint16), "PNG", "from 0 to 65535"),
        (np.array([[0, 256]], np.uint16), "TIFF", "from 0 to 256"),
        (np.array([[0, 65535]], np.uint16), "PPM", "from 0 to 65535"),
        (np.array([[-1, 9]], np.int32), "TIFF", "from -1 to 9"),
        (np.array([[0, 0.5, 1]], np.float32), "TIFF", "from 0 to 1"),
        (np.array([[0, np.nan]], np.float32), "TIFF", "from nan to nan"),
        (np.array([[0, np.inf]], np.float32), "TIFF", "from 0 to inf"),
    ],
)
def test_grey_values_that_would_be_clipped_are_refused(values, kind, problem, tmp_path):
    # The reference turns nearly all of these into a white or a black image, without a message.
    with pytest.raises(
        CorruptImage, match=rf"x\.jpg: its grey values, {problem}, .* 8 bits"
    ) as caught:
        _read(tmp_path, _grey(values, kind))
    assert caught.value.reason in str(caught.value)
    assert str(tmp_path) not in caught.value.reason


@settings(max_examples=60)
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=4), st.sampled_from(["uint16", "I"]))
def test_deep_grey_is_never_changed(tmp_path_factory, values, depth):
    dtype = np.uint16 if depth == "uint16" else np.int32
    array = np.array([values]).astype(dtype)
    try:
        image = _read(tmp_path_factory.getbasetemp(), _grey(array, "TIFF"))
    except CorruptImage:
        assert array.max() > 255
    else:
        assert np.array_equal(np.asarray(image)[..., 0], array)


def test_corrupt_and_missing_images_are_different_errors(tmp_path):
    whole = _encoded(_picture(200, 100), "JPEG")
    for name, data, reason in (
        ("cut.jpg", whole[: len(whole) // 2], "the image cannot be decoded"),
        ("zero.jpg", b"", "the image is empty"),
        ("text.jpg", b"<html>404</html>", "this is a web page, not an image"),
        ("random.jpg", bytes(range(256)), "not an image"),
        ("head.png", _encoded(_picture(), "PNG")[:90], "the image cannot be decoded"),
    ):
        with pytest.raises(CorruptImage, match=reason) as caught:
            _read(tmp_path, data, name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
        assert caught.value.reason.startswith(reason)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("missing.jpg", "folder.jpg", "cut.jpg/x.jpg", "../x.jpg"):
        with pytest.raises(InputError) as caught:
            ImageFolder(tmp_path).read(name)
        assert not isinstance(caught.value, CorruptImage), name


def test_a_temporary_error_does_not_make_an_image_corrupt(tmp_path):
    (tmp_path / "x.png").write_bytes(_encoded(_picture(), "PNG"))
    images = ImageFolder(tmp_path)
    images.read("x.png")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, before[1]))
        try:
            with pytest.raises(
                InputError, match=r"cannot be read \(Too many open files\)"
            ) as caught:
                images.read("x.png")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not isinstance(caught.value, CorruptImage)
