"""Whole images in formats that are not read are named, and never called damaged."""

import builtins
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from so_clip.data import decode
from so_clip.data.images import CorruptImage, ImageFolder, UnreadFormat

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


def read(folder: Path, data: bytes, name: str = "photo.jpg") -> Image.Image:
    (folder / name).write_bytes(data)
    return ImageFolder(folder).read(name)


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1" + bytes(500)


def tiff(channels: int, bits: int) -> bytes:
    """Return a TIFF of 2 x 2 pixels."""
    entries = {256: 2, 257: 2, 258: bits, 259: 1, 262: 1, 273: 200, 277: channels, 278: 2}
    entries[279] = 4 * channels * bits // 8
    data = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, value in sorted(entries.items()):
        data += tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
    return data.ljust(200, b"\0") + bytes(entries[279])


WHOLE = {
    "JPEG 2000": encoded("JPEG2000"),
    "icon": encoded("ICO"),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "Canon CR3": box(b"crx "),
    "Canon CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(50),
    "13 channels of 16 bits": tiff(13, 16),
    "PDF": b"%PDF-1.7\n",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "video": box(b"isom"),
    "Photoshop": b"8BPS\0\1" + bytes(50),
    "DICOM": bytes(128) + b"DICM" + bytes(50),
}
NO_IMAGES = {
    "a web page, not an image. The download failed. Fetch it again": b"\n<!DOCTYPE html><title>",
    "Git LFS pointer, not an image. Run `git lfs pull`": b"version https://git-lfs.github.com/\n",
    "zero bytes only": bytes(5000),
    "zip archive, not an image. Unpack it": b"PK\3\4" + bytes(50),
    "not an image": b"nothing that is known",
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_whole_image_of_another_format_is_named_with_the_way_out(
    what: str, tmp_path: Path
) -> None:
    with pytest.raises(UnreadFormat, match=what) as caught:
        read(tmp_path, WHOLE[what])
    assert "photo.jpg: this is" in str(caught.value)
    assert any(word in caught.value.reason for word in ("Convert", "PNG"))
    assert not any(word in caught.value.reason for word in ("damaged", "Fetch"))


@pytest.mark.parametrize("what", NO_IMAGES)
def test_what_is_no_image_is_named(what: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptImage, match=what) as caught:
        read(tmp_path, NO_IMAGES[what])
    assert not isinstance(caught.value, UnreadFormat)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "JPEG", "PNG"])
def test_a_damaged_image_of_a_format_that_is_read_is_damaged(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptImage) as caught:
        read(tmp_path, encoded(kind)[:100])
    assert not isinstance(caught.value, UnreadFormat)


def test_avif_is_read_by_its_content(tmp_path: Path) -> None:
    data = encoded("AVIF", quality=100, subsampling="4:4:4")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(read(tmp_path, data), expected)


def test_heic_is_read_with_the_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    grey, stream = Image.linear_gradient("L"), io.BytesIO()
    smooth = Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])
    heif.from_pillow(smooth).save(stream, quality=95)
    found = np.asarray(read(tmp_path, stream.getvalue()), int)
    assert np.abs(found - np.asarray(smooth, int)).max() <= 8
    with pytest.raises(CorruptImage, match=r"a HEIC image that cannot be decoded.* Convert it"):
        read(tmp_path, box(b"heic"))


def test_heic_without_the_extra_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    decode.formats.cache_clear()
    try:
        with pytest.raises(UnreadFormat, match=r"a HEIC image.* pip install 'so-clip\[heic\]'"):
            read(tmp_path, box(b"heic"))
    finally:
        decode.formats.cache_clear()


def test_a_long_text_in_a_png_changes_no_pixel(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("x", "y" * 3_000_000, zip=True)
    texts.add_itxt("z", "y" * 3_000_000, zip=True)
    assert np.array_equal(read(tmp_path, encoded("PNG", pnginfo=texts)), PICTURE)
    assert np.array_equal(ImageFolder(tmp_path).read("photo.jpg"), PICTURE)


def test_pillows_warnings_are_printed_once_with_the_first_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO()
    PICTURE.convert("P").save(data, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        for name in ("a.png", "b.png"):
            read(tmp_path, data.getvalue(), name)
        warnings.warn("of another library", stacklevel=1)
    assert [str(warning.message) for warning in others] == ["of another library"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"so_clip: {tmp_path / 'a.png'}: Pillow warns: Palette images with")
    assert line.endswith("The image is used; others like it are not named.")
