"""The kind of a file that no reader of images accepts, from its first bytes."""

import struct
from typing import BinaryIO, NamedTuple

from PIL import TiffImagePlugin

from so_clip.system.commands import install

HEAD_BYTES = 512
_CONVERT = "Convert it to PNG or JPEG."
_FAILED = "The download failed. Fetch it again."
_AVIF_READER = "Update Pillow: version 11.3 reads AVIF. Or convert it to PNG or JPEG."
_HEIC_READER = f"Install its reader: {install('so-clip[heic]')}. Or convert it to PNG or JPEG."


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        what: its name, for a message.
        way_out: one or two sentences.
        whole: the file has a picture that another program can read.
        reader: Pillow's name of the format, if there is a reader for it.
    """

    what: str
    way_out: str = _CONVERT
    whole: bool = True
    reader: str = ""


# Brands of the ISO container that starts with "ftyp" after its length.
_BRANDS = {
    b"avif": Kind("an AVIF image", _AVIF_READER, reader="AVIF"),
    b"avis": Kind("an AVIF animation", _AVIF_READER, reader="AVIF"),
    b"crx ": Kind("a raw photograph (Canon CR3)"),
    b"jxl ": Kind("a JPEG XL image"),
    b"jp2 ": Kind("a JPEG 2000 image"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        Kind("a HEIC image", _HEIC_READER, reader="HEIF"),
    ),
}  # fmt: skip
_LFS = "Run `git lfs pull` in its folder."
_VIDEO = Kind("a video", "Extract a frame as PNG or JPEG.")
# First bytes, and the kinds that begin with them. Longer ones come first.
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 image")),
    (b"\xff\x4f\xff\x51", Kind("a JPEG 2000 image")),
    (b"\0\0\0\x0cJXL ", Kind("a JPEG XL image")),
    (b"\xff\x0a", Kind("a JPEG XL image")),
    (b"II\xbc", Kind("a JPEG XR image")),
    (b"\0\0\1\0", Kind("an icon (ICO)")),
    (b"\0\0\2\0", Kind("a cursor (CUR)")),
    (b"icns", Kind("an icon of macOS (ICNS)")),
    (b"8BPS", Kind("a Photoshop document (PSD)")),
    (b"gimp xcf", Kind("a GIMP document (XCF)")),
    (b"qoif", Kind("a QOI image")),
    (b"DDS ", Kind("a DDS texture")),
    (b"v/1\x01", Kind("an OpenEXR image")),
    (b"#?RADIANCE", Kind("a Radiance HDR image")),
    (b"SIMPLE  =", Kind("a FITS image")),
    (b"BPG\xfb", Kind("a BPG image")),
    (b"IIRO", Kind("a raw photograph (Olympus)")),
    (b"IIRS", Kind("a raw photograph (Olympus)")),
    (b"IIU\0", Kind("a raw photograph (Panasonic)")),
    (b"FUJIFILMCCD-RAW", Kind("a raw photograph (Fujifilm)")),
    (b"\0MRM", Kind("a raw photograph (Minolta)")),
    (b"%PDF", Kind("a PDF document", "Export its picture as PNG or JPEG.")),
    (b"%!PS", Kind("a PostScript document", "Export its picture as PNG or JPEG.")),
    (b"\x93NUMPY", Kind("a NumPy array", "Save it as PNG.")),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"\0\0\1\xba", _VIDEO),
    (b"FLV", _VIDEO),
    (b"PK\3\4", Kind("a zip archive", "Unpack it.", False)),
    (b"\x1f\x8b", Kind("a gzip archive", "Unpack it.", False)),
    (b"Rar!", Kind("a RAR archive", "Unpack it.", False)),
    (b"7z\xbc\xaf", Kind("a 7-Zip archive", "Unpack it.", False)),
    (b"version https://git-lfs", Kind("a Git LFS pointer", _LFS, False)),
    (b"{", Kind("JSON text", _FAILED, False)),
)  # fmt: skip
_WEB = Kind("a web page", _FAILED, False)
_SVG = Kind("an SVG drawing", "Export it as PNG.")


def kind_of(stream: BinaryIO) -> Kind | None:
    """Return what a file is if its first bytes show it; None for anything else.

    Formats that are read are None too: such a file is damaged. But a TIFF with a number of
    channels that Pillow does not know is whole.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], _VIDEO)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _VIDEO
    if head[128:132] == b"DICM":
        return Kind("a DICOM image")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _kind_of_tiff(stream, head)
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return _SVG if b"<svg" in text else _WEB
    if head and not head.strip(b"\0"):
        return Kind("a file of zero bytes only", "Fetch it again.", False)
    return None


def _kind_of_tiff(stream: BinaryIO, head: bytes) -> Kind | None:
    if head[8:10] == b"CR":
        return Kind("a raw photograph (Canon CR2)")
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if b"+" in head[2:4] else 8])
        stream.seek(directory.next)
        directory.load(stream)
        channels = directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        found = directory.get(TiffImagePlugin.BITSPERSAMPLE, 1)
        bits = max(found) if isinstance(found, tuple) else found
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return None
    if channels in (1, 3, 4) and bits <= 8:
        return None
    return Kind(
        f"a TIFF image with {channels} channels of {bits} bits",
        "Save it as PNG with three channels of 8 bits.",
    )
