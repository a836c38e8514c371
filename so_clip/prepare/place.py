"""From whatever folders an archive has to CoOp's layout, and into place without a half-way state.

Archives of one dataset differ in the folders around the images: the authors', Kaggle's, a friend's.
So nothing is assumed of them: the images are looked for by the paths that the split file lists, or
by the folders that a class has.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from so_clip.data.cards.card import TEST_LAYOUTS, DatasetCard

_AIRCRAFT_LISTS = ("variants.txt", "images_variant_train.txt")


def find_images(tree: Path, paths: Sequence[str]) -> dict[str, Path]:
    """Return the file for each of `paths` that is found below `tree`, wherever it lies in there.

    A folder that holds them all, or the most of them, is preferred; what it lacks is taken from
    elsewhere, so that two folders of one name within each other do no harm.
    """
    files = {Path(root, name).relative_to(tree).as_posix() for root, name in _files(tree)}
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
    """Return the folder below `tree` that is this dataset's, for layouts without a split file.

    For Aircraft it is the one with the lists, for test sets the one with the most class folders;
    None if there is none.
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


def _files(tree: Path) -> Iterator[tuple[str, str]]:
    for root, _, names in os.walk(tree):
        for name in names:
            yield root, name


def merge(source: Path, target: Path) -> None:
    """Move what is below `source` to `target`, folders whole where `target` lacks them.

    Nothing that is at `target` is replaced but empty files and links to nowhere. A folder or file
    appears there whole or not at all, whenever the process ends.

    Args:
        source: a folder; it is empty or gone afterwards, but for what `target` had already.
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
        elif not place.exists() or _is_empty_file(place):
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
    if source.is_dir():
        shutil.copytree(source, beside)
    else:
        shutil.copy2(source, beside)
    beside.rename(place)
    remove(source)


def remove(path: Path) -> None:
    """Remove a file, link or whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0
