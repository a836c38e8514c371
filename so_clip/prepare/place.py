"""Finds images in the folders of an archive, and moves files into place atomically.

Archives of one dataset (the authors', Kaggle's, a friend's) differ in the folders around the
images. So images are found by the paths in the split file, or by the names of class folders.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from so_clip.data.cards.card import TEST_LAYOUTS, DatasetCard
from so_clip.prepare.missing import is_empty_file
from so_clip.system.safe_open import open_plain

_AIRCRAFT_LISTS = ("variants.txt", "images_variant_train.txt")


def find_images(tree: Path, paths: Sequence[str]) -> dict[str, Path]:
    """Return the file for each of `paths` that is found anywhere below `tree`.

    The folder that holds the most of them comes first, and other folders supply the rest. So a
    folder within a folder of the same name does no harm.
    """
    files = {
        Path(root, name).relative_to(tree).as_posix()
        for root, _, names in os.walk(tree)
        for name in names
    }
    endings: dict[str, list[str]] = {}
    wanted = set(paths)
    depths = {path.count("/") for path in wanted}
    for file in sorted(files):
        parts = file.split("/")
        for depth in depths:
            ending = "/".join(parts[-depth - 1 :])
            if ending in wanted:
                endings.setdefault(ending, []).append(file)
    roots = Counter(
        file[: len(file) - len(path)] for path, found in endings.items() for file in found
    )
    best = roots.most_common(1)[0][0] if roots else ""
    return {
        path: tree / (best + path if best + path in files else found[0])
        for path, found in endings.items()
    }


def find_folder(tree: Path, card: DatasetCard) -> Path | None:
    """Return the dataset's folder below `tree`, for layouts without a split file; None without one.

    Aircraft's folder holds the lists, a test set's folder the most class folders.
    """
    if card.layout == "fgvc_aircraft":
        for root, _, names in os.walk(tree):
            if set(_AIRCRAFT_LISTS) <= set(names):
                return Path(root)
        return None
    assert card.layout in TEST_LAYOUTS, card.layout
    numbered = card.layout == "numbered_folders"
    classes = set(map(str, card.parent_labels)) if numbered else set(card.class_folders)
    counts = {root: len(classes & set(folders)) for root, folders, _ in os.walk(tree)}
    best = max(counts, key=lambda root: counts[root], default=None)
    return Path(best) if best is not None and counts[best] else None


def merge(source: Path, target: Path) -> None:
    """Move the content of `source` into `target`; a folder that is not in `target` moves as one.

    Only empty files and links to nowhere are replaced. A folder or file appears in `target`
    complete or not at all, even if the process is killed.

    Args:
        source: a folder; files that `target` already has stay in it.
        target: a folder, which need not exist; on another file system if it is a link.
    """
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        move(source, target)
        return
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False) and place.is_dir():
            merge(Path(entry.path), place)
        elif not place.exists() or is_empty_file(place):
            move(Path(entry.path), place)


def move(source: Path, place: Path) -> None:
    """Rename a file or folder to `place`; across file systems, copy beside it and rename."""
    try:
        source.rename(place)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    beside = place.with_name(f".{place.name}.part")
    remove(beside)
    copy(source, beside)
    beside.rename(place)
    remove(source)


def copy(source: Path, place: Path) -> None:
    """Copy a plain file, or a folder with its content.

    Raises:
        OSError: a file is a pipe or a device. Reading it could take forever.
    """
    if source.is_dir():
        shutil.copytree(source, place, copy_function=_copy_file)
    else:
        _copy_file(str(source), str(place))


def _copy_file(source: str, place: str) -> None:
    os.close(open_plain(Path(source)))
    shutil.copy2(source, place)


def remove_empty_folders(folder: Path) -> None:
    """Remove the empty folders below `folder`, and `folder` itself if nothing is left."""
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it is not empty
            Path(root).rmdir()


def remove(path: Path) -> None:
    """Remove a file, link or folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
