"""One's own images in folders: a folder for each class, in train/, val/ and test/ or not."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from so_clip.data.lists.layouts import IMAGE_SUFFIXES
from so_clip.data.lists.listing import SPLIT_NAMES, Listed, Listing, composed, told
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError

SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".jfif", ".jpe")
# Folders that systems and archives leave behind, beside all whose names begin with a dot.
_LEFT_BEHIND = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_LINKS = "dataset.follow_links=true follows it"
SPLIT_CHOICES = ("auto", "folders", "drawn")


def list_folder(root: Path, split: str = "auto", follow_links: bool = False) -> Listing:
    """List the images below `root`.

    With `train` and `test` (and perhaps `val`, `valid` or `validation`) in it, and no other folder,
    these are the splits, and the folders in them the classes; otherwise its folders are the
    classes. Folders in a class's folder are a part of it. Names that begin with a dot, and files
    that are no images by their names, are passed over and counted.

    Args:
        root: the folder.
        split: "folders" or "drawn" says which of the two it is; "auto" looks.
        follow_links: also to what lies outside `root`.

    Raises:
        InputError: no folders, folders of both kinds, one class in two folders, a link that leads
            outside or in a circle, or links by which one image is in two classes or splits; the
            message names it, and the way out.
    """
    walk = _Walk(root, os.path.realpath(root), follow_links)
    folders = walk.folders_in(root)
    if not folders:
        lying = f"{walk.stray} images lie in it, but in no" if walk.stray else "it holds no"
        raise InputError(f"{root}: {lying} folder of a class. Give each class a folder in there.")
    if _is_split(root, list(folders), split):
        for name, path in folders.items():
            for key, place in walk.classes_in(path).items():
                walk.add(key, place, SPLIT_NAMES[name.lower()])
    else:
        for key, place in walk.classes_in(root, folders).items():
            walk.add(key, place, None)
    return walk.listing()


def _is_split(root: Path, names: list[str], choice: str) -> bool:
    """Tell whether the folders in `root` are splits, and not classes."""
    known = [name for name in names if name.lower() in SPLIT_NAMES]
    splits = [SPLIT_NAMES[name.lower()] for name in known]
    others = sorted(set(names) - set(known))
    if choice == "drawn" or (choice == "auto" and "train" not in splits):
        return False
    way_out = "If all are classes, say dataset.split=drawn."
    if choice == "auto" and others and "test" not in splits:
        return False  # a class may be called train
    if others:
        raise InputError(
            f"{root}: {', '.join(sorted(known))} are splits, but {others[0]} is none. Move it "
            f"away. {way_out}"
        )
    for split in sorted(set(splits)):
        if splits.count(split) > 1:
            same = sorted(name for name in known if SPLIT_NAMES[name.lower()] == split)
            raise InputError(f"{root}: {' and '.join(same)} are both {split}. Make them one.")
    for split in ("train", "test"):
        if split not in splits:
            raise InputError(
                f"{root}: there is {' and '.join(sorted(known)) or 'no split'}, but no {split}/. "
                "No run chooses anything by val/, so that you may rename it to test/; or put all "
                f"classes side by side, and the split is drawn. {way_out}"
            )
    return True


@dataclass
class _Walk:
    """Goes through the folders, and counts what it passes over."""

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
        """Return name and path of the folders that are classes or splits; count what is not."""
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
        """Return the path of each class's folder, by the class's key."""
        classes: dict[str, str] = {}
        found = self.folders_in(Path(folder)) if folders is None else folders
        for name, path in found.items():
            key = composed(name)
            if key in classes:
                raise InputError(
                    f"{folder}: two folders are called {key!r}, written with other Unicode "
                    "characters (NFC and NFD). Move the images of one into the other."
                )
            classes[key] = path
        return classes

    def add(self, key: str, folder: str, split: str | None) -> None:
        """Add all images of a class's folder and of those in it."""
        self.found.keys.add(key)
        below = len(str(self.root)) + 1
        # A folder, and the real paths of those that lead to it, through links or not.
        waiting: list[tuple[str, frozenset[str]]] = [(folder, frozenset())]
        while waiting:
            place, around = waiting.pop()
            real = os.path.realpath(place)
            if real in around:
                raise InputError(f"{place}: is a folder around itself, by links. Remove one.")
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
        passed_over = f"so many are passed over in {self.root}"
        if self.others:
            notes.append(f"no images by their names, {passed_over}: {told(self.others)}")
        if self.hidden:
            notes.append(f"hidden or left behind by a system, {passed_over}: {self.hidden}")
        if self.stray:
            notes.append(f"images in no class's folder, {passed_over}: {self.stray}")
        if self.broken:
            notes.append(f"links to nothing, {passed_over}: {self.broken}")
        return found

    def _refuse_shared(self) -> None:
        """Refuse links by which a test image is trained on, too, or is of two classes."""
        seen: dict[str, Listed] = {}
        for image in self.found.images:
            first = seen.setdefault(os.path.realpath(self.root / image.path), image)
            # What is drawn could come into both splits, even within one class.
            apart = (first.key, first.split) != (image.key, image.split) or image.split is None
            if first is not image and apart:
                both = " and ".join(sorted((first.path, image.path)))
                raise InputError(f"{self.root}: {both} are one file, by links. Remove one of them.")

    def _visible(self, folder: str) -> list[os.DirEntry[str]]:
        self.found.read_from.append(Path(folder))
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror or error}.") from error
        visible = []
        for entry in listed:
            if entry.name.startswith(".") or entry.name.lower() in _LEFT_BEHIND | {"thumbs.db"}:
                self.hidden += 1
            elif not entry.is_symlink() or self._is_fair(entry, folder):
                visible.append(entry)
        return visible

    def _is_fair(self, link: os.DirEntry[str], folder: str) -> bool:
        """Tell whether a link leads anywhere; InputError if it leads out, or in a circle."""
        target = os.path.realpath(link.path)
        if not os.path.exists(target):  # noqa: PTH110 - Path.exists raises below a locked folder
            self.broken += 1
            return False
        if not self.follow_links and not _is_below(target, self.real_root):
            raise InputError(
                f"{link.path}: is a link to {target}, outside the dataset. Put the images "
                f"themselves there; {_LINKS}."
            )
        if _is_below(os.path.realpath(folder), target):
            raise InputError(f"{link.path}: is a link to a folder around it. Remove it.")
        self.linked = True
        return True


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _holds(entry: os.DirEntry[str], test: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Return what a test of an entry says; InputError if the system does not tell."""
    try:
        return test(entry)
    except OSError as error:
        raise InputError(f"{entry.path}: cannot be read: {error.strerror or error}.") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no suffix"  # noqa: PTH122
