"""Unpacks archives of unknown origin: plain files and folders below one folder, nothing else.

zipfile and tarfile's data filter write the files. What they do not refuse is refused here, by name:
links, devices and pipes, sparse files, paths that leave the folder, and bombs.
"""

import errno
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from so_clip.data.plain_files import shortened
from so_clip.data.safe_path import why_outside
from so_clip.prepare.sources import SourceFailed

# Images compress little, lists of them tenfold; a bomb's ratio is a thousand.
MAX_RATIO = 100
# An archive that unpacks to less is no bomb, whatever its ratio.
HARMLESS_BYTES = 16 << 20
MAX_MEMBERS = 2_000_000
# File names of archives within archives.
SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_NOT_READ = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}
_LONGEST_HEADER_BYTES = 1 << 20
# gzip and bzip2 raise OSError without a number, and a wrong offset in a zip is an invalid argument.
# A file and a folder of one name raise the others.
_ERRORS_OF_ARCHIVES = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class Refused(Exception):
    """An archive or one of its members is hostile or of the wrong kind; the message says why."""


@dataclass
class Budget:
    """The bytes and members that may still come out of archives and of the archives in them.

    Attributes:
        bytes_left: of `max_unpacked_gib`.
        members_left: files and folders.
        by_ratio: bytes that the sizes of the outermost archives still allow. Archives in archives
            spend them and add nothing, because a small bomb would grow at every level.
    """

    bytes_left: int
    members_left: int = MAX_MEMBERS
    by_ratio: int = 0

    def add_archive(self, size: int) -> None:
        """Allow the bytes that may come out of an outermost archive of `size` bytes."""
        self.by_ratio += max(HARMLESS_BYTES, MAX_RATIO * size)

    def spend(self, size: int, members: int = 1) -> None:
        """Subtract `size` bytes and some members; Refused if the budget is too small."""
        self.by_ratio -= size
        self.bytes_left -= size
        self.members_left -= members
        if self.by_ratio < 0:
            raise Refused(
                f"it would unpack to more than {MAX_RATIO} times its size, together with the "
                "archives in it"
            )
        if self.bytes_left < 0:
            raise Refused("it unpacks to more than is allowed (max_unpacked_gib)")
        if self.members_left < 0:
            raise Refused(f"it holds more than {MAX_MEMBERS} members")


def unpack(archive: Path, target: Path, budget: Budget, inside_another: bool = False) -> None:
    """Unpack a zip or tar (plain, gzip, bzip2, xz) below `target`; its content decides the kind.

    Files get default permissions. macOS's shadow files (__MACOSX, ._NAME) are left out.

    Args:
        archive: the file.
        target: an existing folder that holds only files from this function.
        budget: is spent.
        inside_another: the archive comes out of another one, and adds nothing to the budget.

    Raises:
        SourceFailed: the archive is damaged, hostile, of an unknown kind, or the disk is full;
            the message names archive and member. Members before that one stay in `target`.
    """
    with source_errors(archive, target):
        with archive.open("rb") as stream:
            head = stream.read(8)
        for magic, kind in _NOT_READ.items():
            if head.startswith(magic):
                raise Refused(
                    f"it is a {kind} archive, which cannot be read. Unpack it by hand, pack it as "
                    "zip or tar and repeat with --offline-from FOLDER"
                )
        if not inside_another:
            budget.add_archive(archive.stat().st_size)
        (_unpack_zip if head.startswith(b"PK") else _unpack_tar)(archive, target, budget)


@contextmanager
def source_errors(file: Path, target: Path) -> Iterator[None]:
    """Turn everything that is raised while `file` is unpacked below `target` into SourceFailed."""
    try:
        yield
    except Refused as error:
        raise SourceFailed(
            f"{file}: refused: {error}. None of it is used; take it from a source that you trust.",
            spoiled=True,
        ) from error
    # Broken archives raise nearly every exception there is.
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _ERRORS_OF_ARCHIVES:
            raise SourceFailed(
                f"{file}: cannot be unpacked below {target}: {error.strerror}. Free the disk, or "
                "choose another folder with data_root=FOLDER."
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceFailed(
            f"{file}: damaged or cut short, it cannot be unpacked ({reason}). Download it again.",
            spoiled=True,
        ) from error


def _unpack_zip(archive: Path, target: Path, budget: Budget) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        # zipfile never reads more of a member than its declared size.
        size = sum(member.file_size for member in members)
        budget.spend(size, len(members))
        check_space(size, target)
        for member in tqdm(members, f"unpack {archive.name}", unit="file", disable=None):
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(member.filename, is_link=kind == stat.S_IFLNK)
            if _is_wanted(member.filename):
                opened.extract(member, target)


def _unpack_tar(archive: Path, target: Path, budget: Budget) -> None:
    with (
        tarfile.open(archive, tarinfo=_TarInfo) as opened,
        tqdm(desc=f"unpack {archive.name}", unit="file", disable=None) as bar,
    ):
        end = 0
        for member in opened:
            if not member.isdir() and (not member.isreg() or member.issparse()):
                raise _not_plain(member.name, is_link=member.issym() or member.islnk())
            # From the end of the member before, so that headers count too.
            budget.spend(member.offset_data + member.size - end)
            end = member.offset_data + member.size
            if _is_wanted(member.name):
                opened.extract(member, target, set_attrs=False, filter="data")
            bar.update()


class _TarInfo(tarfile.TarInfo):
    """A tar header; one with a huge file name is refused before tarfile reads it into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        header = super().frombuf(buf, encoding, errors)
        is_content = header.isreg() or header.isdir()
        if not is_content and header.size > _LONGEST_HEADER_BYTES:
            raise Refused(f"{shortened(header.name)} is a header of {header.size} bytes")
        return header


def check_space(size: int, target: Path) -> None:
    """Raise OSError if fewer than `size` bytes are free on the disk of the folder `target`."""
    free = shutil.disk_usage(target).free
    if size > free:
        text = f"it needs {size / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free"
        raise OSError(errno.ENOSPC, text)


def _not_plain(name: str, is_link: bool) -> Refused:
    what = "a link" if is_link else "neither a plain file nor a folder"
    return Refused(f"{shortened(name)} is {what}")


def _is_wanted(name: str) -> bool:
    """Refuse a path that leaves the folder; return False for macOS's shadow files."""
    path = name.removeprefix("./").rstrip("/")
    if path in ("", "."):
        return False
    if reason := why_outside(path):
        raise Refused(f"{shortened(name)} would leave the folder: {reason}")
    parts = path.split("/")
    return parts[0] != "__MACOSX" and not parts[-1].startswith("._")


def nested_archives(folder: Path) -> list[Path]:
    """Return the archives anywhere below `folder`, recognized by their file names, sorted."""
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.name.lower().endswith(SUFFIXES))
