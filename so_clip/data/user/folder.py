"""A user's own images in folders: one folder per class, optionally in train/, val/ and test/."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from so_clip.data.lists.layouts import IMAGE_SUFFIXES
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import composed
from so_clip.data.user.links import is_below, link_outside, refuse_shared
from so_clip.data.user.listing import Listed, Listing, counts_text
from so_clip.data.user.split_folders import Content, find_layout
from so_clip.errors import InputError, reason_of

SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".jfif", ".jpe", ".avif", ".heic", ".heif")
# Folders and files that systems and archives create, beside all names that begin with a dot.
_SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
}


def list_folder(
    root: Path,
    split: str = "auto",
    follow_links: bool = False,
    split_folders: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Listing:
    """List the images below `root`.

    If the folders in `root` have the names of splits, such as `train`, `Testing` or `seg_val`, the
    folders in them are the classes. Otherwise the folders in `root` are the classes. Folders inside
    the folder of a class belong to the class, unless all of them are splits. Names that begin with
    a dot and files without the suffix of an image are skipped and counted.

    Args:
        root: the folder.
        split: "folders" if the folders in `root` are splits, "drawn" if they are classes, "auto"
            to find out.
        follow_links: also follow links to places outside `root`.
        split_folders: the folders of train, val and test, as paths below `root`, if their names do
            not say it.

    Raises:
        InputError: no folders, folders with two readings, images without a label, a class in two
            folders, a link to a place outside or to a folder around it, or an image in two classes
            or splits through links. The message names it and the way out.
    """
    walk = _Walk(root, os.path.realpath(root), follow_links)
    folders = walk.folders_in(root)
    if not folders:
        found = f"holds {walk.stray} images, but no" if walk.stray else "holds no"
        raise InputError(
            f"{root}: {found} folder of a class. Make one folder per class in it, or list path and "
            "label of each image in a CSV file (dataset=csv)."
        )
    layout = find_layout(root, list(folders), split, split_folders, _content)
    walk.found.notes += layout.notes
    if layout.skipped:
        walk.found.notes.append(f"folders of no split, skipped: {', '.join(layout.skipped)}")
    for place, part in layout.splits.items():
        for key, folder in walk.classes_in(walk.entered(place)).items():
            walk.add(key, folder, part)
    if not layout.splits:
        for key, folder in walk.classes_in(root, folders).items():
            inside = walk.folders_in(Path(folder)) if layout.inside else {}
            for name, place in inside.items():
                walk.add(key, place, layout.inside[name])
            if not inside:
                walk.add(key, folder, None)
    return walk.listing()


def _content(folder: Path) -> Content:
    """Return the visible content of a folder; nothing if it cannot be listed."""
    folders, images = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    images += entry.name.lower().endswith(SUFFIXES)
    except OSError:
        return Content((), 0, is_known=False)  # the walk names it
    return Content(tuple(sorted(folders)), images)


def is_hidden(name: str) -> bool:
    """Return whether a name begins with a dot, or is that of a system's own file or folder."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


@dataclass
class _Walk:
    """Walks through the folders and counts skipped files."""

    root: Path
    real_root: str
    follow_links: bool
    found: Listing = field(init=False)
    hidden: int = 0
    stray: int = 0
    broken: int = 0
    linked: bool = False
    others: "Counter[str]" = field(default_factory=Counter)
    # Folders inside the folders of classes.
    inner: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found = Listing(self.root)

    def folders_in(self, folder: Path) -> dict[str, str]:
        """Return name and path of the folders of classes or splits, and count other files."""
        folders = {}
        for entry in self._visible(str(folder)):
            if _holds(entry, os.DirEntry.is_dir):
                folders[entry.name] = entry.path
            elif entry.name.lower().endswith(SUFFIXES):
                self.stray += 1
            else:
                self.others[_suffix(entry.name)] += 1
        return folders

    def classes_in(
        self, folder: Path | str, folders: dict[str, str] | None = None
    ) -> dict[str, str]:
        """Return the path of each class folder, by the folder's name in Unicode form NFC."""
        classes: dict[str, str] = {}
        found = self.folders_in(Path(folder)) if folders is None else folders
        for name, path in found.items():
            key = composed(name)
            if key in classes:
                raise InputError(
                    f"{folder}: two folders have the name {key!r}, in different Unicode forms "
                    "(NFC and NFD). Move the images of one into the other."
                )
            classes[key] = path
        return classes

    def add(self, key: str, folder: str, split: str | None) -> None:
        """Add all images in the folder of a class, at any depth."""
        self.found.keys.add(key)
        below = len(str(self.root)) + 1
        # A folder, and the real paths of all folders on the way to it.
        waiting: list[tuple[str, frozenset[str]]] = [(folder, frozenset())]
        while waiting:
            place, around = waiting.pop()
            real = os.path.realpath(place)
            if real in around:
                raise InputError(f"{place}: contains itself through links. Remove one link.")
            for entry in self._visible(place):
                if _holds(entry, os.DirEntry.is_dir):
                    self.inner.append(entry.path[below:])
                    waiting.append((entry.path, around | {real}))
                elif not entry.name.lower().endswith(SUFFIXES):
                    self.others[_suffix(entry.name)] += 1
                elif _holds(entry, os.DirEntry.is_file):
                    path = entry.path[below:].replace(os.sep, "/")
                    if reason := why_outside(path):
                        raise InputError(f"{entry.path!r}: {reason}. Rename it.")
                    self.found.images.append(Listed(path, key, split))
                else:
                    self.others["not plain files"] += 1

    def listing(self) -> Listing:
        notes, found = self.found.notes, self.found
        if self.linked:
            refuse_shared(
                self.root,
                ((image, os.path.realpath(self.root / image.path)) for image in self.found.images),
            )
        skipped = f"skipped in {self.root}"
        if self.others:
            notes.append(
                f"files without the suffix of an image, {skipped}: {counts_text(self.others)}"
            )
        if self.hidden:
            notes.append(f"hidden files and files of the system, {skipped}: {self.hidden}")
        if self.stray:
            notes.append(f"images outside the folders of classes, {skipped}: {self.stray}")
        if self.inner:
            notes.append(
                f"folders inside the folders of classes: {len(self.inner)}, such as "
                f"{min(self.inner)}; their images belong to the class"
            )
        if self.broken:
            notes.append(f"broken links, {skipped}: {self.broken}")
        return found

    def _visible(self, folder: str) -> list[os.DirEntry[str]]:
        self.found.read_from.append(Path(folder))
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {reason_of(error)}.") from error
        visible = []
        for entry in listed:
            if is_hidden(entry.name):
                self.hidden += 1
            elif not entry.is_symlink() or self._can_follow(entry.path, folder):
                visible.append(entry)
        return visible

    def entered(self, place: str) -> Path:
        """Return a folder below the root after a check of all links on the way to it."""
        folder = self.root
        for name in place.split("/"):
            if (folder / name).is_symlink():
                self._can_follow(str(folder / name), str(folder))
            folder /= name
        return folder

    def _can_follow(self, link: str, folder: str) -> bool:
        """Return False for a broken link; InputError for a link to outside or to a parent."""
        target = os.path.realpath(link)
        if not os.path.exists(target):  # noqa: PTH110 - Path.exists raises below a locked folder
            self.broken += 1
            return False
        if not self.follow_links and not is_below(target, self.real_root):
            raise link_outside(link, target)
        if is_below(os.path.realpath(folder), target):
            raise InputError(f"{link}: is a link to a folder around it. Remove it.")
        self.linked = True
        return True


def _holds(entry: os.DirEntry[str], test: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Return the result of a test of an entry; InputError if the system refuses it."""
    try:
        return test(entry)
    except OSError as error:
        raise InputError(f"{entry.path}: cannot be read: {reason_of(error)}.") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no suffix"  # noqa: PTH122
