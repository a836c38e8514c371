"""Examines one dataset: its split file, missing images, and images that cannot be decoded."""

import os
from collections.abc import Sequence
from pathlib import Path

from so_clip.data.cache.corrupt import errors_of
from so_clip.data.cards.card import DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Splits
from so_clip.data.images import ImageFolder, UnreadFormat
from so_clip.data.lists.misplaced import find_misplaced
from so_clip.data.lists.split_file import MAX_PROBLEMS, read_sound_part
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.data.unicode_names import DiskNames
from so_clip.data.user.class_names import pairs_text
from so_clip.data.user.dataset import UserData, read_user_data
from so_clip.data.user.folder import SUFFIXES
from so_clip.data.user.links import LinkCheck, is_below
from so_clip.errors import InputError, reason_of
from so_clip.prepare.dataset import LAYOUTS, comes_with
from so_clip.prepare.diagnosis import ABSENT, FAULTY, WHOLE, Diagnosis, Place
from so_clip.prepare.image_health import spread, suspicious
from so_clip.prepare.missing import is_empty_file
from so_clip.system.commands import command, install, override

# Parts of the commands that repair a dataset.
REPAIR, IMAGENET, CHMOD = "repair=true", "imagenet_dir=", "chmod -R u+rX"
MAX_PAIRS = 1000  # names of classes
SHOWN = 3  # examples of one kind of fault
# The last bytes of this many images are read. All of ImageNet's would take an hour.
MAX_ENDS_READ = 200_000


def examine(card: DatasetCard, place: Place, decode: int | None) -> Diagnosis:
    """Examine one dataset and report all its faults. Nothing is written.

    Args:
        card: the dataset.
        place: the folder of all datasets, which need not exist.
        decode: the number of images to decode in addition to suspicious ones; None for all images.
    """
    root = place.root
    if card.layout not in LAYOUTS:
        return _examine_package(card, root)
    try:
        return _examine(card, place, decode)
    except OSError as error:
        locked = error.filename or root
        fault = f"{locked} cannot be read: {reason_of(error)}"
        remedy = _chmod([locked]) if isinstance(error, PermissionError) else ""
        return Diagnosis(card.name, FAULTY, root / card.folder, faults=[fault], remedy=remedy)


def _examine(card: DatasetCard, place: Place, decode: int | None) -> Diagnosis:
    root = place.root
    folder = dataset_folder(card, root) if root.is_dir() else root / card.folder
    found = Diagnosis(card.name, WHOLE, folder)
    if not _exists(card, root, folder):
        if misplaced := find_misplaced(card, root):
            found.state = FAULTY
            found.faults.append(f"{misplaced.problem}. {misplaced.way_out.removesuffix('.')}")
            again = Place(misplaced.data_root, place.cards_dir).options
            doctor = command("doctor", override("dataset", card.name), *again)
            found.remedy = misplaced.move or doctor
            return found
        found.state = ABSENT
        found.faults.append(f"{root / card.folder} does not exist or has none of its files")
        found.remedy = _prepare(card, place)
        return found
    if folder != root / card.folder:
        found.notes.append(f"used in place, where another code base keeps it: {folder}")
    file = _split_file(card, root)
    try:
        splits, problems = read_sound_part(file, card) if file else (load_splits(card, root), [])
    except InputError as error:
        found.faults.append(_without_advice(str(error), card))
        # An existing split file may be the user's own, so only repair=true replaces it.
        found.remedy = _prepare(card, place, repair=file is not None)
    else:
        found.faults += [_without_advice(str(problem), card) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            more = f"{len(problems) - SHOWN}{' or' if len(problems) == MAX_PROBLEMS else ''} more"
            found.faults.append(f"{file}: {more} such faults of the split file")
        if not problems:
            _compare_with_published(card, splits, found)
        bad_split_file = bool(found.faults) and file is not None
        _examine_images(card, splits, found, decode)
        if found.faults and not found.remedy.startswith(CHMOD):
            found.remedy = _prepare(card, place, repair=bad_split_file or found.remedy != "")
    found.state = FAULTY if found.faults else WHOLE
    return found


def _examine_package(card: DatasetCard, root: Path) -> Diagnosis:
    try:
        splits = load_splits(card, root)
    except InputError as error:
        remedy = install(card.package["install"]) if card.package else ""
        return Diagnosis(card.name, ABSENT, None, faults=[str(error)], remedy=remedy)
    return Diagnosis(card.name, WHOLE, None, len(splits.examples), notes=[comes_with(card)])


def examine_user_images(name: str, data: UserData, decode: int | None) -> Diagnosis:
    """Examine a user's own images as `examine` does. Images that cannot be listed are one fault."""
    found = Diagnosis(name, WHOLE, data.folder)
    try:
        card, splits, listing = read_user_data(data, name)
    except InputError as error:
        found.faults.append(str(error))
    else:
        found.notes += listing.notes
        if listing.pairs:
            pairs = pairs_text(listing.pairs, MAX_PAIRS)
            found.notes.append(f"{data.class_names} names the classes by position: {pairs}")
        counts = ", ".join(f"{splits.sizes[split]} {split}" for split in SPLITS)
        found.notes.append(f"{splits.sizes['classes']} classes; images: {counts}")
        _examine_images(card, splits, found, decode)
        if not found.remedy.startswith(CHMOD):
            found.remedy = ""  # these images have no other source
    found.state = FAULTY if found.faults else WHOLE
    return found


def _examine_images(
    card: DatasetCard, splits: Splits, found: Diagnosis, decode: int | None
) -> None:
    """Add the faults of the images, and the remedy for permissions or "repair" for damage."""
    assert found.folder is not None
    folder = found.folder / card.image_dir
    names = DiskNames(folder)
    paths = [names.find(example.path) for example in splits.examples]
    found.images = len(paths)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        found.faults.append(f"the image folder {folder} is missing")
        return
    present, missing, no_files, empty = _classify(folder, paths)
    locked = _locked(folder, missing)
    for place in locked[:SHOWN]:
        found.faults.append(f"{place} cannot be read: its permissions forbid it")
    if locked:
        found.remedy = _chmod([folder] if folder in locked else locked[:SHOWN])
        missing = [path for path in missing if not set(locked) & set((folder / path).parents)]
    for bad_paths, fault, what in (
        (missing, "missing", "missing"),
        (no_files, "not plain files", "not a plain file"),
        (empty, "empty files", "an empty file"),
    ):
        _add(found.faults, bad_paths, len(paths), fault)
        found.bad_images |= dict.fromkeys(bad_paths, what)
    if folder in locked:
        return
    if missing:
        found.notes += _misplaced(folder, missing)
    _note_links(folder, present, found)
    if card.layout == "split_file":
        _note_other_classes(folder, paths, found)
    chosen = present
    if decode is not None:
        bad_ends = suspicious(folder, spread(present, MAX_ENDS_READ))
        chosen = list(dict.fromkeys(bad_ends + spread(present, decode)))
    unreadable, damaged = _decode_images(folder, chosen, found)
    if unreadable and not locked:
        found.remedy = _chmod([folder])
    found.remedy = found.remedy or ("repair" if damaged or no_files else "")


def _decode_images(
    folder: Path, chosen: list[str], found: Diagnosis
) -> tuple[list[str], list[str]]:
    """Add the faults of images that cannot be decoded; return unreadable and damaged ones."""
    bad = errors_of(ImageFolder(folder), chosen, f"decode {found.name}")
    found.decoded = len(chosen)
    unreadable = [path for path in bad if not os.access(folder / path, os.R_OK)]
    unread = [path for path in bad if isinstance(bad[path], UnreadFormat)]
    damaged = [path for path in bad if path not in {*unreadable, *unread}]
    for paths, fault in (
        (unreadable, "not readable: their permissions forbid it"),
        (damaged, "damaged"),
        (unread, "in formats that are not read"),
    ):
        _add(found.faults, paths, found.images, fault)
    found.notes += [str(bad[path]) for path in (*damaged[:SHOWN], *unread[:SHOWN])]
    found.bad_images |= {
        path: getattr(error, "reason", "") or str(error) for path, error in bad.items()
    }
    return unreadable, damaged


def _classify(folder: Path, paths: list[str]) -> tuple[list[str], ...]:
    """Return the paths of files with content, of missing files, of no plain files, of empty files.

    All of them appear in the order of `paths`.
    """
    present: list[str] = []
    missing: list[str] = []
    no_files: list[str] = []
    empty: list[str] = []
    for path in paths:
        file = folder / path
        if os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises on a locked folder
            (empty if is_empty_file(file) else present).append(path)
        else:
            (no_files if os.path.exists(file) else missing).append(path)  # noqa: PTH110
    return present, missing, no_files, empty


def _locked(folder: Path, missing: list[str]) -> list[Path]:
    parents = {folder, *(folder / Path(path).parent for path in missing)}
    return [
        parent
        for parent in sorted(parents)
        if os.path.isdir(parent) and not os.access(parent, os.R_OK | os.X_OK)  # noqa: PTH112
    ]


def _chmod(places: Sequence[Path | str]) -> str:
    return command(*map(Path, places), program=tuple(CHMOD.split()))


def _compare_with_published(card: DatasetCard, splits: Splits, found: Diagnosis) -> None:
    """Note a user's own split, such as one that was shortened to the available images.

    Other classes are a fault, since accuracies on them belong to another task. Fewer images are a
    fault if there is no split file that lists them.
    """
    counts = splits.sizes
    if counts == card.sizes:
        if card.split_sha256 and splits.sha256 != card.split_sha256:
            found.notes.append(
                "the split file is your own: as long as the published one, with other entries"
            )
        return
    differences = ", ".join(
        f"{counts[key]} of {size} {'classes' if key == 'classes' else f'{key} images'}"
        for key, size in card.sizes.items()
        if counts[key] != size
    )
    if card.layout == "split_file":
        text = f"the split file is your own, not the published one: {differences}"
        other_classes = counts["classes"] != card.sizes["classes"]
        (found.faults if other_classes else found.notes).append(text)
    else:
        found.faults.append(f"{found.folder}: {differences} are there")


def _misplaced(folder: Path, missing: list[str]) -> list[str]:
    """Return notes about missing images that have other capitals or are one folder too deep."""
    notes: list[str] = []
    listed: dict[str, dict[str, str]] = {}
    for path in missing:
        inside = ""
        for name in path.split("/"):
            if inside not in listed:
                names = _names_in(folder / inside)
                listed[inside] = {other.lower(): other for other in names}
            found = listed[inside].get(name.lower())
            if found is None:
                break
            if found != name:
                place = folder / inside / found
                notes.append(f"{place} is there, but the lists name {name}: capitals matter")
                break
            inside = f"{inside}/{name}" if inside else name
    notes = list(dict.fromkeys(notes))
    nested = folder / folder.name
    if os.path.exists(nested / missing[0]):  # noqa: PTH110
        notes.append(f"missing images are one folder too deep, in {nested}")
    return notes[:SHOWN]


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _note_links(folder: Path, paths: list[str], found: Diagnosis) -> None:
    """Note links out of the folder. Runs follow them, since large sets are often linked."""
    links = LinkCheck(folder, follow_links=True)
    root = os.path.realpath(folder)
    outside = [path for path in paths if not is_below(links.real_path(path), root)]
    _add(found.notes, outside, found.images, f"links that lead out of {folder}, and are followed")


def _note_other_classes(folder: Path, paths: list[str], found: Diagnosis) -> None:
    listed = {path.split("/")[0] for path in paths if "/" in path}
    others = [
        name
        for name in sorted(set(_names_in(folder)) - listed if listed else ())
        if os.path.isdir(folder / name)  # noqa: PTH112
        and any(file.lower().endswith(SUFFIXES) for file in _names_in(folder / name)[:100])
    ]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        shown = ", ".join(others[:SHOWN])
        found.notes.append(f"folders of images that no list names, and no run reads: {shown}{more}")


def _add(lines: list[str], paths: list[str], count: int, what: str) -> None:
    """Add a line about images with one fault, with the first of them, unless there are none."""
    if paths:
        more = ", ..." if len(paths) > SHOWN else ""
        lines.append(f"{len(paths)} of {count} images {what}: {', '.join(paths[:SHOWN])}{more}")


def _exists(card: DatasetCard, root: Path, folder: Path) -> bool:
    """Return whether a dataset has a folder with content; a split file elsewhere does not count."""
    if folder != root / card.folder:
        return True
    return os.path.lexists(folder) and not (folder.is_dir() and not any(os.scandir(folder)))


def _split_file(card: DatasetCard, root: Path) -> Path | None:
    if card.split_file is None or not root.is_dir():
        return None
    return next((place for place in split_file_places(card, root) if place.is_file()), None)


def _without_advice(message: str, card: DatasetCard) -> str:
    without = message.replace(how_to_get(card), "").replace("Repair it, or fetch it again.", "")
    return " ".join(without.split())


def prepare_command(names: str, place: Place, *more: str) -> str:
    """Return the command that prepares one dataset, or several (a,b), with more of its words."""
    return command("prepare", f"dataset={names}", *place.options, *more)


def _prepare(card: DatasetCard, place: Place, repair: bool = False) -> str:
    if not card.sources:
        return ""
    if card.layout == "imagenet":
        return prepare_command(card.name, place, f"{IMAGENET}FOLDER_WITH_TRAIN_AND_VAL")
    return prepare_command(card.name, place, *([REPAIR] if repair else []))
