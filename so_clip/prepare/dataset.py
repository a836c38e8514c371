"""One dataset, from nothing or from half of it to CoOp's layout below the data root."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from so_clip.data.cards.card import TEST_LAYOUTS, DatasetCard
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.errors import InputError, RunFailed
from so_clip.prepare.imagenet import link_imagenet
from so_clip.prepare.images import ImageSources, Supply
from so_clip.prepare.missing import all_examples, lacking
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.place import remove
from so_clip.prepare.repair import Aside, take_bad_images, take_bad_split_file
from so_clip.prepare.sources import (
    IMAGES,
    NO_SOURCE,
    SPLIT,
    RemoteFile,
    SourceFailed,
    read_sources,
)
from so_clip.system import atomic
from so_clip.system.locks import lock_folder, unlock

# Below the data root: archives and what comes out of them; nothing once all is done.
WORK_DIR = ".prepare"
# The others' images come with this package or with another.
LAYOUTS = ("split_file", "imagenet", "fgvc_aircraft", *TEST_LAYOUTS)
# Where the split files are told of.
COOP_DATASETS = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


def prepare(card: DatasetCard, options: PrepareOptions, say: Callable[[str], None]) -> str:
    """Complete one dataset below the data root; what is there already is kept.

    Nothing half-made ever lies in its final place, and the process may be killed at any moment:
    the next call goes on. Of several calls on one data root one works and the others wait.

    Args:
        card: the dataset.
        options: where, and from where.
        say: is told, a line each, of waits and of every source that failed.

    Returns:
        One line that says what there is now.

    Raises:
        InputError: the data root, the split file there or the card cannot be used, or something
            that only the user can provide is missing.
        RunFailed: no source worked; `say` was told why, and the message names the ways out.
    """
    if card.layout not in LAYOUTS:
        return "comes with a Python package, nothing is to be fetched"
    try:
        options.data_root.mkdir(parents=True, exist_ok=True)
        with locked(options.data_root, say):
            return _prepare(card, options, say)
    except OSError as error:
        place = error.filename or options.data_root
        raise InputError(
            f"data_root={options.data_root}: {place} cannot be written: {error.strerror or error}. "
            "Mend that, or choose another folder with data_root=FOLDER."
        ) from error


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
    aside = Aside(supply.work / "damaged")
    try:
        if options.repair and card.layout == "split_file":
            take_bad_split_file(card, options.data_root, aside)
        if card.layout == "split_file":
            _ensure_split_file(card, options.data_root, supply, say)
        if options.repair and card.layout != "imagenet":
            take_bad_images(card, options.data_root, aside)
        return _complete(card, options, supply, say)
    finally:
        aside.give_back()


def _complete(
    card: DatasetCard, options: PrepareOptions, supply: Supply, say: Callable[[str], None]
) -> str:
    """Place the images that are lacking and clear up; return what there is now."""
    root = options.data_root
    sources = ImageSources(card, options, supply, say)
    incomplete = bool(lacking(card, root))
    if incomplete and card.layout == "imagenet":
        copy = options.imagenet_dir or options.offline_from
        link_imagenet(card, root, copy, sources.staged)
    elif incomplete and not sources.complete():
        sources.clear()
        raise _nothing_worked(card, IMAGES)
    if incomplete and (still := lacking(card, root)):
        raise RunFailed(
            f"dataset={card.name}: something else is where {len(still)} images should be, first "
            f"{still[0]} below {dataset_folder(card, root)}. Repeat with repair=true."
        )
    _clear_up(sources, supply, options)
    count = len(all_examples(load_splits(card, root)))
    folder = dataset_folder(card, root)
    return f"{'completed' if incomplete else 'is complete'}: {count} images in {folder}"


def _clear_up(sources: ImageSources, supply: Supply, options: PrepareOptions) -> None:
    sources.clear()
    if not options.keep_archives:
        remove(supply.work)
    for folder in (supply.work, supply.work.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _ensure_split_file(
    card: DatasetCard, root: Path, supply: Supply, say: Callable[[str], None]
) -> None:
    """Fetch the split file unless there is one. The user's own, cut down as it may be, is kept."""
    places = split_file_places(card, root)
    if any(place.is_file() for place in places):
        return
    known = read_sources(card, SPLIT)
    for source in known:
        for remote in source.files:
            named = RemoteFile(remote.url, places[0].name, remote.md5, remote.sha256)
            try:
                file = supply.obtain(named)
                _check_split_file(file, card, named)
                atomic.write_bytes(places[0], file.read_bytes())
                supply.forget(named)
                return
            except SourceFailed as error:
                say(str(error))
                if error.spoiled:
                    supply.forget(named)
    if not known:
        say(NO_SOURCE)
    raise _nothing_worked(card, SPLIT)


def _check_split_file(file: Path, card: DatasetCard, remote: RemoteFile) -> None:
    """Raise SourceFailed unless the file lists what was published, by number at least."""
    try:
        splits = read_split_file(file, card)
    except InputError as error:
        raise SourceFailed(f"{remote.url}: {error}", spoiled=True) from error
    sizes = {"classes": len(splits.class_names)}
    sizes |= {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
    if sizes != card.sizes:
        raise SourceFailed(
            f"{remote.url}: {file.name} lists {_counts(sizes)}, but {_counts(card.sizes)} were "
            "published.",
            spoiled=True,
        )


def _counts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(sizes.items()))


def _nothing_worked(card: DatasetCard, holds: str) -> RunFailed:
    names = [remote.name for each in read_sources(card, holds) for remote in each.files]
    wanted = card.split_file if holds == SPLIT else (names[0] if names else "an archive of it")
    what = "split file" if holds == SPLIT else "images"
    return RunFailed(
        f"dataset={card.name}: the {what} could not be had from any source. "
        f"Repeat the command when the network is there; or fetch {wanted} elsewhere "
        f"({COOP_DATASETS if holds == SPLIT else card.homepage}) into a FOLDER and repeat with "
        "--offline-from FOLDER."
    )
