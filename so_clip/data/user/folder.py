"""A user's own images in folders: one folder per class, optionally in train/, val/ and test/."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from so_clip.data.lists.layouts import IMAGE_SUFFIXES
from so_clip.data.safe_path import why_outside
from so_clip.data.user.listing import SPLIT_NAMES, Listed, Listing, composed, counts_text
from so_clip.errors import InputError

SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".jfif", ".jpe")
# Folders and files that systems and archives create, beside all names that begin with a dot.
_SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
}
SPLIT_CHOICES = ("auto", "folders", "drawn")


def list_folder(root: Path, split: str = "auto", follow_links: bool = False) -> Listing:
    """List the images below `root`.

    If `root` holds `train` and `test` (and optionally `val`, `valid` or `validation`) and no other
    folder, these are the splits, and the folders in them are the classes. Otherwise the folders in
    `root` are the classes. Folders inside the folder of a class belong to the class. Names that
    begin with a dot and files without the suffix of an image are skipped and counted.

    Args:
        root: the folder.
        split: "folders" if the folders in `root` are splits, "drawn" if they are classes, "auto"
            to find out.
        follow_links: also follow links to places outside `root`.

    Raises:
        InputError: no folders, folders of both kinds, a class in two folders, a link to a place
            outside or to a folder around it, or an image in two classes or splits through links.
            The message names it and the way out.
    """
    walk = _Walk(root, os.path.realpath(root), follow_links)
    folders = walk.folders_in(root)
    if not folders:
        found = f"holds {walk.stray} images, but no" if walk.stray else "holds no"
        raise InputError(f"{root}: {found} folder of a class. Make one folder per class in it.")
    if _is_split(root, list(folders), split):
        for name, path in folders.items():
            for key, place in walk.classes_in(path).items():
                walk.add(key, place, SPLIT_NAMES[name.lower()])
    else:
        for key, place in walk.classes_in(root, folders).items():
            walk.add(key, place, None)
    return walk.listing()


def _is_split(root: Path, names: list[str], choice: str) -> bool:
    known = [name for name in names if name.lower() in SPLIT_NAMES]
    splits = [SPLIT_NAMES[name.lower()] for name in known]
    others = sorted(set(names) - set(known))
    if choice == "drawn" or (choice == "auto" and "train" not in splits):
        return False
    way_out = "If all are classes, add dataset.split=drawn."
    if choice == "auto" and others and "test" not in splits:
        return False  # train may be the name of a class
    if others:
        raise InputError(
            f"{root}: {', '.join(sorted(known))} are splits, but {others[0]} is not. Move it "
            f"away. {way_out}"
        )
    for split in sorted(set(splits)):
        if splits.count(split) > 1:
            same = sorted(name for name in known if SPLIT_NAMES[name.lower()] == split)
            raise InputError(f"{root}: {' and '.join(same)} are both {split}. Merge them.")
    for split in ("train", "test"):
        if split not in splits:
            raise InputError(
                f"{root}: there is {' and '.join(sorted(known)) or 'no split'}, but no {split}/. "
                "No run uses val/ to choose anything, so you may rename it to test/. Or put the "
                f"folders of all classes directly into it, and the split is drawn. {way_out}"
            )
    return True


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
            self._refuse_shared()
        skipped = f"skipped in {self.root}"
        if self.others:
            notes.append(
                f"files without the suffix of an image, {skipped}: {counts_text(self.others)}"
            )
        if self.hidden:
            notes.append(f"hidden files and files of the system, {skipped}: {self.hidden}")
        if self.stray:
            notes.append(f"images outside the folders of classes, {skipped}: {self.stray}")
        if self.broken:
            notes.append(f"broken links, {skipped}: {self.broken}")
        return found

    def _refuse_shared(self) -> None:
        """Refuse links that put an image into two splits or two classes."""
        seen: dict[str, Listed] = {}
        for image in self.found.images:
            first = seen.setdefault(os.path.realpath(self.root / image.path), image)
            # A draw could put the image into two splits, even within one class.
            differs = (first.key, first.split) != (image.key, image.split) or image.split is None
            if first is not image and differs:
                both = " and ".join(sorted((first.path, image.path)))
                raise InputError(f"{self.root}: {both} are links to one file. Remove one of them.")

    def _visible(self, folder: str) -> list[os.DirEntry[str]]:
        self.found.read_from.append(Path(folder))
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror or error}.") from error
        visible = []
        for entry in listed:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
                self.hidden += 1
            elif not entry.is_symlink() or self._can_follow(entry, folder):
                visible.append(entry)
        return visible

    def _can_follow(self, link: os.DirEntry[str], folder: str) -> bool:
        """Return False for a broken link; InputError for a link to outside or to a parent."""
        target = os.path.realpath(link.path)
        if not os.path.exists(target):  # noqa: PTH110 - Path.exists raises below a locked folder
            self.broken += 1
            return False
        if not self.follow_links and not _is_below(target, self.real_root):
            raise InputError(
                f"{link.path}: is a link to {target}, outside the dataset. Copy the images "
                "there, or add dataset.follow_links=true to follow it."
            )
        if _is_below(os.path.realpath(folder), target):
            raise InputError(f"{link.path}: is a link to a folder around it. Remove it.")
        self.linked = True
        return True


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _holds(entry: os.DirEntry[str], test: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Return the result of a test of an entry; InputError if the system refuses it."""
    try:
        return test(entry)
    except OSError as error:
        raise InputError(f"{entry.path}: cannot be read: {error.strerror or error}.") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no suffix"  # noqa: PTH122
