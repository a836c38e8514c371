"""Unpack archives that nobody vouches for: plain files and folders below one folder, no more.

Refused by name: paths that are absolute or climb out, links, devices and pipes, encrypted members,
sparse files, and bombs, told by what comes out of the archive and not by what it says of itself.
"""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, cast

from tqdm import tqdm

from so_clip.data.safe_path import why_outside
from so_clip.prepare.sources import SourceFailed

CHUNK_BYTES = 1 << 20
# Images hardly compress, lists of them do by ten; a bomb's ratio is a thousand.
MAX_RATIO = 100
# Below this nothing is a bomb, whatever its ratio.
HARMLESS_BYTES = 16 << 20
MAX_MEMBERS = 2_000_000
# What an archive's own name says, for archives within archives.
SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_STRANGERS = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}
_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_LONGEST_HEADER_BYTES = 1 << 20
_ZIP_ENCRYPTED = 0x1
_UNIX_TYPE, _UNIX_LINK, _UNIX_FILE, _UNIX_FOLDER = 0o170000, 0o120000, 0o100000, 0o040000


class Refused(Exception):
    """What is wrong with an archive, or with one of its members."""


class NoSpace(Exception):
    """Where there is too little room for what an archive holds."""


@dataclass
class Budget:
    """What may yet come out of an archive and of those within it: bytes and members."""

    bytes_left: int
    members_left: int = MAX_MEMBERS

    def spend(self, size: int) -> None:
        """Take `size` bytes off; Refused when there are not so many."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise Refused("it unpacks to more than is allowed (max_unpacked_gib)")

    def member(self, name: str) -> None:
        """Count one more member; Refused when there are too many."""
        self.members_left -= 1
        if self.members_left < 0:
            raise Refused(f"it holds more than {MAX_MEMBERS} members, {name[:60]!r} among them")


def unpack(archive: Path, target: Path, budget: Budget) -> None:
    """Unpack a zip or tar (plain, gzip, bzip2, xz) below `target`; told by content, not by name.

    Files get plain permissions. macOS's shadows (__MACOSX, ._NAME) are left out.

    Args:
        archive: the file.
        target: an existing folder that holds nothing but what this function wrote.
        budget: is spent.

    Raises:
        SourceFailed: the archive is damaged, hostile, of an unknown kind, or the disk is full;
            the message names archive and member. What was unpacked before lies in `target`.
    """
    try:
        size = archive.stat().st_size
        allowed = max(HARMLESS_BYTES, MAX_RATIO * size)
        with archive.open("rb") as stream:
            head = stream.read(8)
        if head.startswith(b"PK"):
            _unpack_zip(archive, target, budget, allowed)
        else:
            _unpack_tar(archive, head, target, budget, allowed)
    except NoSpace as error:
        raise SourceFailed(f"{archive}: {error}") from error
    except Refused as error:
        raise SourceFailed(
            f"{archive}: refused: {error}. Nothing of it is used; take it from a source that you "
            "trust.",
            spoiled=True,
        ) from error
    except OSError as error:
        if error.errno is None:  # gzip and bzip2 speak of damage by OSError
            raise _damaged(archive, error) from error
        raise SourceFailed(
            f"{archive}: cannot be unpacked below {target}: {error.strerror}. Free the disk, or "
            "choose another folder with data_root=FOLDER."
        ) from error
    # Broken archives raise nearly every exception there is.
    except Exception as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> SourceFailed:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SourceFailed(
        f"{archive}: damaged or cut short, it cannot be unpacked ({reason}). Fetch it again.",
        spoiled=True,
    )


def _unpack_zip(archive: Path, target: Path, budget: Budget, allowed: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        declared = sum(member.file_size for member in members)
        if declared > allowed:
            raise Refused(_bomb(declared, allowed))
        check_space(declared, target)
        for member in tqdm(members, f"unpack {archive.name}", unit="file", disable=None):
            budget.member(member.filename)
            kind = (member.external_attr >> 16) & _UNIX_TYPE
            if kind not in (0, _UNIX_FILE, _UNIX_FOLDER):
                what = "a link" if kind == _UNIX_LINK else "neither file nor folder"
                raise Refused(f"{_shown(member.filename)} is {what}")
            if member.flag_bits & _ZIP_ENCRYPTED:
                raise Refused(f"{_shown(member.filename)} is encrypted")
            place = _place(member.filename, target)
            if place is None or member.is_dir():
                continue
            with opened.open(member) as stream:
                _write(place, stream, budget)


def _unpack_tar(archive: Path, head: bytes, target: Path, budget: Budget, allowed: int) -> None:
    for magic, kind in _STRANGERS.items():
        if head.startswith(magic):
            raise Refused(
                f"it is a {kind} archive, which is not read. Unpack it by hand, pack it as zip or "
                "tar and give that with --offline-from FOLDER"
            )
    with (
        _decompressed(archive, head, allowed) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo) as opened,
        tqdm(desc=f"unpack {archive.name}", unit="file", disable=None) as bar,
    ):
        for member in opened:
            budget.member(member.name)
            bar.update()
            if member.isdir():
                _place(member.name, target)
                continue
            if not member.isreg() or member.issparse():
                what = "a link" if member.issym() or member.islnk() else "no plain file"
                raise Refused(f"{_shown(member.name)} is {what}")
            place = _place(member.name, target)
            content = opened.extractfile(member)
            if place is not None and content is not None:
                _write(place, content, budget, member.size)


@contextmanager
def _decompressed(archive: Path, head: bytes, allowed: int) -> Iterator[IO[bytes]]:
    opener = next((each for magic, each in _COMPRESSED.items() if head.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        yield cast(IO[bytes], _Counted(stream, allowed))


class _TarInfo(tarfile.TarInfo):
    """A header of a tar that is not read into memory if it is of no sensible length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        header = super().frombuf(buf, encoding, errors)
        if header.type not in tarfile.SUPPORTED_TYPES + _LONG_HEADERS:
            raise Refused(f"{_shown(header.name)} is of the unknown type {header.type!r}")
        if header.type in _LONG_HEADERS and header.size > _LONGEST_HEADER_BYTES:
            raise Refused(f"{_shown(header.name)} is a header of {header.size} bytes")
        return header


class _Counted(RawIOBase):
    """A stream that refuses to give more than `allowed` bytes, whoever asks, headers included."""

    def __init__(self, stream: IO[bytes], allowed: int) -> None:
        self.stream, self.allowed, self.given = stream, allowed, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.given + size > self.allowed + CHUNK_BYTES:
            raise Refused(_bomb(self.given + max(size, 0), self.allowed))
        data = self.stream.read(size)
        self.given += len(data)
        if self.given > self.allowed:
            raise Refused(_bomb(self.given, self.allowed))
        return data


def _place(name: str, target: Path) -> Path | None:
    """Return where a member goes, its folder made; None for what is left out."""
    path = name.removeprefix("./").rstrip("/")
    if path in ("", "."):
        return None
    if reason := why_outside(path):
        raise Refused(f"{_shown(name)} would leave the folder: {reason}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts[0] == "__MACOSX" or parts[-1].startswith("._"):
        return None
    place = target.joinpath(*parts)
    (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
    return place


def _write(place: Path, stream: IO[bytes], budget: Budget, size: int | None = None) -> None:
    written = 0
    with place.open("wb") as file:
        while chunk := stream.read(CHUNK_BYTES):
            budget.spend(len(chunk))
            written += len(chunk)
            file.write(chunk)
    if size is not None and written < size:
        raise EOFError(f"{place.name} ends after {written} of {size} bytes")


def check_space(size: int, target: Path) -> None:
    """Raise NoSpace if fewer than `size` bytes are free where the folder `target` is."""
    free = shutil.disk_usage(target).free
    if size > free:
        raise NoSpace(
            f"it needs {size / 2**30:.2f} GiB below {target}, where {free / 2**30:.2f} GiB are "
            "free. Free the disk, or choose another folder with data_root=FOLDER."
        )


def _bomb(size: int, allowed: int) -> str:
    return (
        f"it would unpack to {size / 2**20:.0f} MiB or more, but {allowed / 2**20:.0f} MiB are the "
        f"most for an archive of its size ({MAX_RATIO} times)"
    )


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"


def nested_archives(folder: Path) -> list[Path]:
    """Return the archives that lie anywhere below `folder`, by their names, sorted."""
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.name.lower().endswith(SUFFIXES))
