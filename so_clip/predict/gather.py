"""Find images: files, folders with everything below them, patterns, and lists of paths.

Nothing here opens a file, so pipes and devices never block. Nothing here imports torch.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from so_clip.data.user.folder import SUFFIXES, is_hidden
from so_clip.data.user.links import is_below
from so_clip.data.user.listing import counts_text
from so_clip.errors import InputError, reason_of
from so_clip.system.safe_open import MAX_LIST_BYTES

_MAGIC = "*?["


@dataclass
class Gathered:
    """Images in the order of the arguments, each file once.

    Attributes:
        paths: as the arguments give them; a file that two names lead to has the first name.
        problems: sentences about files and folders that do not exist or cannot be read.
        notes: sentences about skipped files.
    """

    paths: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(
    arguments: Iterable[str], listed: Iterable[str] = (), follow_links: bool = False
) -> Gathered:
    """Return the images that the arguments name.

    A file is taken with any name. Below a folder, files with the suffix of an image are taken;
    hidden files, files of the system, pipes and devices are skipped. A pattern has *, ?, [...] or
    ** for any folders, and its matches are taken like arguments. A folder is entered once, so links
    that form a circle do no harm.

    Args:
        arguments: paths and patterns. An existing path is no pattern.
        listed: more paths, without patterns.
        follow_links: also follow links that lead out of a folder.

    Raises:
        InputError: a pattern cannot be used or matches nothing, or a link leads out of its folder.
    """
    gathering = _Gathering(follow_links)
    for argument in arguments:
        if not os.path.lexists(argument) and any(mark in argument for mark in _MAGIC):
            for path in _matches(argument):
                gathering.add(path, within=_fixed_part(argument))
        else:
            gathering.add(argument)
    for path in listed:
        gathering.add(path)
    return gathering.found


def paths_from(data: bytes, null: bool) -> list[str]:
    """Return the paths of a list, one on each line, or each ended by a NUL byte.

    Raises:
        InputError: a list of lines has a NUL byte, or the list is too long.
    """
    if len(data) > MAX_LIST_BYTES:
        raise InputError(
            f"-: stdin has more than {MAX_LIST_BYTES // 2**20} MiB. Give the list in parts, or "
            "give the folder of the images."
        )
    if not null and b"\0" in data:
        raise InputError(
            "-: stdin holds a NUL byte, so it is no list with one path per line. Add -0 for paths "
            "that end with NUL (find -print0). To classify one image, give its path."
        )
    return [os.fsdecode(path) for path in data.split(b"\0" if null else b"\n") if path]


def _matches(pattern: str) -> Iterator[str]:
    """Yield the sorted matches of a pattern. Its ** does not follow links to folders."""
    anchor = PurePath(pattern).anchor
    takes_hidden = _has_hidden(str(PurePath(pattern)))
    try:
        # Python's glob module follows links, and with two circles it would not end.
        found = sorted(map(str, Path(anchor).glob(pattern.removeprefix(anchor))))
    except (ValueError, NotImplementedError, OSError) as error:
        raise InputError(f"{pattern}: this pattern cannot be used: {reason_of(error)}.") from error
    kept = [path for path in found if takes_hidden or not _has_hidden(path)]
    if not kept:
        raise InputError(
            f"{pattern}: there is no such file, and the pattern matches nothing. Check its folder."
        )
    yield from kept


def _has_hidden(path: str) -> bool:
    return any(part != ".." and part and is_hidden(part) for part in path.split(os.sep))  # noqa: PTH206 - faster


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern's first part with a mark."""
    parts = PurePath(pattern).parts
    marked = [any(mark in part for mark in _MAGIC) for part in parts]
    return str(Path(*parts[: marked.index(True)]))


class _Gathering:
    def __init__(self, follow_links: bool) -> None:
        self._follow = follow_links
        self._seen: set[str] = set()
        self._real_folders: dict[str, str] = {}
        self.found = Gathered()

    def add(self, path: str, within: str | None = None) -> None:
        """Add a file, or all images below a folder.

        Args:
            path: of a file or a folder.
            within: the folder that links must not lead out of; None: `path` itself.
        """
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - for a list of many paths
        except (OSError, ValueError) as error:  # ValueError: a NUL character
            self.found.problems.append(f"{path}: {reason_of(error)}.")
            return
        if stat.S_ISDIR(mode):
            self._add_folder(path, path if within is None else within)
        elif stat.S_ISREG(mode):
            self._add_file(path)
        else:
            self.found.problems.append(f"{path}: this is not a plain file.")

    def _add_file(self, path: str) -> None:
        if self._is_new(self._real(path)):
            self.found.paths.append(path)

    def _is_new(self, real: str) -> bool:
        before = len(self._seen)
        self._seen.add(real)
        return len(self._seen) > before

    def _real(self, path: str) -> str:
        """Return the real path of a file. Each folder is resolved once, for long lists."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114 - faster
            return os.path.realpath(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self._real_folders[folder], name)  # noqa: PTH118 - faster

    def _add_folder(self, root: str, within: str) -> None:
        walk = _Walk(root, within, self._follow)
        waiting = [root]
        while waiting:
            path = waiting.pop()
            is_folder = path.endswith(os.sep) or path == root
            if not is_folder:
                self._add_file(path)
            elif self._is_new(os.path.realpath(path)):
                try:
                    waiting += reversed(walk.entries(path))
                except OSError as error:
                    folder = path.rstrip(os.sep) or os.sep
                    problem = f"{folder}: cannot be listed: {reason_of(error)}."
                    self.found.problems.append(problem)
        self.found.notes += walk.notes()


class _Walk:
    """Lists the folders below `root`, whose links stay `within` a folder; counts skipped files."""

    def __init__(self, root: str, within: str, follow_links: bool) -> None:
        self._root, self._within, self._follow = root, within, follow_links
        self._real_within = os.path.realpath(within)
        self._others = Counter[str]()

    def entries(self, folder: str) -> list[str]:
        """Return the images and folders in a folder, by name; a folder ends with a separator."""
        kept = []
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            if is_hidden(entry.name):
                self._others["hidden"] += 1
            elif entry.is_symlink() and not self._can_follow(entry.path):
                self._others["broken links"] += 1
            elif entry.is_dir():
                kept.append(f"{entry.path}{os.sep}")
            elif not entry.name.lower().endswith(SUFFIXES):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - faster
                self._others[suffix or "no suffix"] += 1
            elif not entry.is_file():
                self._others["not plain files"] += 1
            else:
                kept.append(entry.path)
        return kept

    def notes(self) -> list[str]:
        """Return a sentence about the skipped files, if there are any."""
        if not self._others:
            return []
        return [f"{self._root}: files that are no images, skipped: {counts_text(self._others)}."]

    def _can_follow(self, link: str) -> bool:
        """Return False for a broken link; InputError for a link that leads out of the root."""
        target = os.path.realpath(link)
        if not os.path.exists(target):  # noqa: PTH110 - Path.exists raises below a locked folder
            return False
        if not self._follow and not is_below(target, self._real_within):
            raise InputError(
                f"{link}: is a link to {target}, outside {self._within}. Add --follow-links to "
                "follow it, or remove it."
            )
        return True
