"""Completes one dataset in CoOp's layout below the data root."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from so_clip.data.cache.corrupt import errors_of
from so_clip.data.cards.card import TEST_LAYOUTS, DatasetCard
from so_clip.data.images import ImageFolder
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.errors import InputError, RunFailed, reason_of
from so_clip.prepare.imagenet import link_imagenet
from so_clip.prepare.images import ImageSources, Supply
from so_clip.prepare.missing import missing_images
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.place import move, remove, remove_empty_folders
from so_clip.prepare.sources import IMAGES, NO_SOURCE, SPLIT, SourceFailed, read_sources
from so_clip.system import atomic
from so_clip.system.locks import lock_folder, unlock
from so_clip.system.safe_open import MAX_LIST_BYTES, read_plain

# Below the data root: archives and unpacked files. It is removed at the end.
WORK_DIR = ".prepare"
# The images of other layouts come with so_clip or with another Python package.
LAYOUTS = ("split_file", "imagenet", "fgvc_aircraft", *TEST_LAYOUTS)
# Links to the split files.
COOP_DATASETS = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


def prepare(card: DatasetCard, options: PrepareOptions, say: Callable[[str], None]) -> str:
    """Complete one dataset below the data root; existing files are kept.

    A file appears in its final place only when it is complete. If the process is killed, the next
    call resumes. Two calls on one data root run one after the other.

    Args:
        card: the dataset.
        options: target and sources.
        say: gets one line for a wait and for each source that failed.

    Returns:
        One line about the dataset's state.

    Raises:
        InputError: the data root, its split file or the card cannot be used, or something is
            missing that only the user can provide.
        RunFailed: no source worked. `say` got the reasons, and the message names the ways out.
    """
    if card.layout not in LAYOUTS:
        return f"{comes_with(card)}, nothing is to be fetched"
    with writable_root(options, say):
        return _prepare(card, options, say)


@contextmanager
def writable_root(options: PrepareOptions, say: Callable[[str], None]) -> Iterator[None]:
    """Make the data root and hold its lock; remove it at the end if nothing is in it.

    Raises:
        InputError: the data root cannot be written.
    """
    is_new = not options.data_root.exists()
    try:
        options.data_root.mkdir(parents=True, exist_ok=True)
        with locked(options.data_root, say):
            yield
    except OSError as error:
        place = error.filename or options.data_root
        raise InputError(
            f"data_root={options.data_root}: {place} cannot be written: {reason_of(error)}. "
            "Correct that, or choose another folder with data_root=FOLDER."
        ) from error
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                options.data_root.rmdir()


def comes_with(card: DatasetCard) -> str:
    """Return where the images of a card without sources come from."""
    return f"comes with {'a Python package' if card.package else 'so_clip'}"


@contextmanager
def locked(data_root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the data root; wait for another preparation, also on another machine.

    Read-only folders and file systems without locks are used without a lock.

    Args:
        data_root: an existing folder.
        say: gets one line if there is a wait.
    """
    lock = None
    with suppress(OSError):
        try:
            lock = lock_folder(data_root)
        except BlockingIOError:
            say(f"another process is preparing datasets in {data_root}; waiting until it is done")
            lock = lock_folder(data_root, wait=True)
    try:
        yield
    finally:
        unlock(lock)


def _prepare(card: DatasetCard, options: PrepareOptions, say: Callable[[str], None]) -> str:
    supply = Supply(card, options, options.data_root / WORK_DIR / card.name)
    set_aside = SetAside(supply.work / "damaged")
    try:
        if card.layout == "split_file":
            if options.repair:
                set_aside.add_bad_split_file(card, options.data_root)
            _ensure_split_file(card, options.data_root, supply, say)
        if options.repair and card.layout != "imagenet":
            set_aside.add_bad_images(card, options.data_root)
        return _complete(card, options, supply, say)
    finally:
        set_aside.give_back()
        remove_empty_folders(supply.work.parent)


def _complete(
    card: DatasetCard, options: PrepareOptions, supply: Supply, say: Callable[[str], None]
) -> str:
    """Place the missing images and remove the rest; return the dataset's state."""
    root = options.data_root
    sources = ImageSources(card, options, supply, say)
    incomplete = bool(missing_images(card, root))
    if incomplete and card.layout == "imagenet":
        copy = options.imagenet_dir or options.offline_from
        link_imagenet(card, root, copy, sources.staged)
    elif incomplete and not sources.complete():
        sources.clear()
        raise _no_source_worked(card, IMAGES)
    folder = dataset_folder(card, root)
    if incomplete and (missing := missing_images(card, root)):
        raise RunFailed(
            f"dataset={card.name}: something else is where {len(missing)} images should be, first "
            f"{missing[0]} below {folder}. Repeat with repair=true."
        )
    sources.clear()
    if not options.keep_archives:
        remove(supply.work)
    count = len(load_splits(card, root).examples)
    return f"{'completed' if incomplete else 'is complete'}: {count} images in {folder}"


def _ensure_split_file(
    card: DatasetCard, root: Path, supply: Supply, say: Callable[[str], None]
) -> None:
    """Download the split file unless there is one. A user's shortened split file is kept."""
    places = split_file_places(card, root)
    if any(place.is_file() for place in places):
        return
    sources = read_sources(card, SPLIT)
    for remote in (file for source in sources for file in source.files):
        remote.name = places[0].name
        try:
            file = supply.obtain(remote)
            _check_split_file(file, card, remote.url)
            atomic.write_bytes(places[0], read_plain(file, MAX_LIST_BYTES))
            supply.forget(remote)
            return
        except SourceFailed as error:
            say(str(error))
            if error.spoiled:
                supply.forget(remote)
    if not sources:
        say(NO_SOURCE)
    raise _no_source_worked(card, SPLIT)


def _check_split_file(file: Path, card: DatasetCard, url: str) -> None:
    """Raise SourceFailed unless the file lists the published numbers of classes and images."""
    try:
        splits = read_split_file(file, card)
    except InputError as error:
        raise SourceFailed(f"{url}: {error}", spoiled=True) from error
    if splits.sizes != card.sizes:
        raise SourceFailed(
            f"{url}: {file.name} lists {_counts(splits.sizes)}, but {_counts(card.sizes)} were "
            "published.",
            spoiled=True,
        )


def _counts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(sizes.items()))


def _no_source_worked(card: DatasetCard, holds: str) -> RunFailed:
    names = [file.name for source in read_sources(card, holds) for file in source.files]
    if holds == SPLIT:
        what, file, page = "split file", card.split_file, COOP_DATASETS
    else:
        what, file, page = "images", names[0] if names else "an archive", card.homepage
    return RunFailed(
        f"dataset={card.name}: no source of the {what} worked. Repeat the command when the network "
        f"is available; or download {file} elsewhere ({page}) into a FOLDER and repeat with "
        "--offline-from FOLDER."
    )


class SetAside:
    """Files that are moved away, and moved back if nothing has replaced them.

    Args:
        folder: keeps the files meanwhile; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._moved: list[tuple[Path, Path]] = []

    def add(self, file: Path) -> None:
        """Move one file away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / str(len(self._moved))
        remove(place)
        move(file, place)
        self._moved.append((file, place))

    def add_bad_split_file(self, card: DatasetCard, root: Path) -> None:
        """Move the split file away if it cannot be used, or lists another number of classes."""
        places = split_file_places(card, root)
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            return
        try:
            classes = len(read_split_file(file, card).class_names)
        except InputError:
            classes = 0
        if classes != card.sizes["classes"]:
            self.add(file)

    def add_bad_images(self, card: DatasetCard, root: Path) -> None:
        """Move away images that cannot be decoded, and folders and links in an image's place.

        Raises:
            InputError: the split file cannot be used.
        """
        folder = dataset_folder(card, root) / card.image_dir
        try:
            missing = set(missing_images(card, root))
            examples = load_splits(card, root).examples
        except InputError:
            if card.layout == "split_file":
                raise
            return
        for path in missing:
            if (folder / path).exists() and not (folder / path).is_file():
                self.add(folder / path)
        present = [example.path for example in examples if example.path not in missing]
        for path in errors_of(ImageFolder(folder), present, f"decode {card.name}"):
            self.add(folder / path)

    def drop(self) -> None:
        """Remove all files that were moved away."""
        self._moved.clear()
        remove(self.folder)

    def give_back(self) -> None:
        """Move files back that nothing has replaced, and remove the others."""
        for file, place in self._moved:
            if not os.path.lexists(file):
                move(place, file)
        remove(self.folder)
