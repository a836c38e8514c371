"""One dataset, examined: its split file, whether every image is there, and can be decoded."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from so_clip.data.cards.card import DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Splits
from so_clip.data.lists.split_file import MAX_PROBLEMS, read_sound_part
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.data.user.dataset import UserData, read_user_data
from so_clip.errors import InputError
from so_clip.prepare.dataset import LAYOUTS
from so_clip.prepare.image_health import spread, suspicious, undecodable
from so_clip.prepare.missing import all_examples, is_empty_file

STATES = WHOLE, FAULTY, ABSENT = "whole", "faulty", "absent"
# Parts of the commands that repair a dataset.
REPAIR, IMAGENET, CHMOD = "repair=true", "imagenet_dir=", "chmod -R u+rX"
SHOWN = 3  # of faults of one kind
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Of ImageNet's million, a look at the ends of all would take an hour.
MOST_LOOKED_AT = 200_000


@dataclass
class Diagnosis:
    """What is known of one dataset.

    Attributes:
        name: the dataset's.
        state: `WHOLE`, `FAULTY` or `ABSENT`.
        folder: where it was looked for, or is.
        images: how many its lists name.
        decoded: how many of them were decoded.
        faults: what is wrong, a sentence each.
        notes: what is worth knowing and not wrong.
        remedy: the one command that repairs it; "" if nothing is wrong, or no command repairs it.
    """

    name: str
    state: str
    folder: Path | None
    images: int = 0
    decoded: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remedy: str = ""

    def as_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        values = vars(self).copy()
        return values | {"folder": None if self.folder is None else str(self.folder)}


def examine(card: DatasetCard, root: Path, decode: int | None) -> Diagnosis:
    """Examine one dataset. Nothing is written, and no fault ends the examination of the rest.

    Args:
        card: the dataset.
        root: the folder of all datasets, which need not be there.
        decode: how many images are decoded, beside all that look suspicious; None for all of them.
    """
    if card.layout not in LAYOUTS:
        return _of_a_package(card, root)
    try:
        return _examine(card, root, decode)
    except OSError as error:
        place = error.filename or root
        fault = f"{place} cannot be read: {error.strerror or error}"
        remedy = _open_up([place]) if isinstance(error, PermissionError) else ""
        return Diagnosis(card.name, FAULTY, root / card.folder, faults=[fault], remedy=remedy)


def _examine(card: DatasetCard, root: Path, decode: int | None) -> Diagnosis:
    folder = dataset_folder(card, root) if root.is_dir() else root / card.folder
    found = Diagnosis(card.name, WHOLE, folder)
    if not _is_there(card, root, folder):
        found.state = ABSENT
        found.faults.append(f"{root / card.folder} holds none of it")
        found.remedy = _prepare(card, root)
        return found
    if folder != root / card.folder:
        found.notes.append(f"used in place, where another code base keeps it: {folder}")
    file = _split_file(card, root)
    try:
        splits, problems = read_sound_part(file, card) if file else (load_splits(card, root), [])
    except InputError as error:
        found.faults.append(_without_advice(str(error), card))
        # A split file that is there is the user's own until told otherwise.
        found.remedy = _prepare(card, root, repair=file is not None)
    else:
        found.faults += [_without_advice(str(each), card) for each in problems[:SHOWN]]
        if len(problems) > SHOWN:
            more = f"{len(problems) - SHOWN}{' or' if len(problems) == MAX_PROBLEMS else ''} more"
            found.faults.append(f"{file}: {more} such faults of the split file")
        if not problems:
            _compare_with_published(card, splits, found)
        of_split_file = bool(found.faults) and file is not None
        _examine_images(card, splits, found, decode)
        if found.faults and not found.remedy.startswith(CHMOD):
            found.remedy = _prepare(card, root, repair=of_split_file or found.remedy != "")
    found.state = FAULTY if found.faults else WHOLE
    return found


def _of_a_package(card: DatasetCard, root: Path) -> Diagnosis:
    try:
        splits = load_splits(card, root)
    except InputError as error:
        remedy = f"pip install '{card.package['install']}'" if card.package else ""
        return Diagnosis(card.name, ABSENT, None, faults=[str(error)], remedy=remedy)
    return Diagnosis(
        card.name, WHOLE, None, len(all_examples(splits)), notes=["comes with a Python package"]
    )


def examine_own(name: str, own: UserData, decode: int | None) -> Diagnosis:
    """Examine one's own images: as `examine` does; what cannot be listed at all is one fault."""
    found = Diagnosis(name, WHOLE, own.folder)
    try:
        card, splits, listing = read_user_data(own, name)
    except InputError as error:
        found.faults.append(str(error))
    else:
        found.notes += listing.notes
        counts = ", ".join(f"{len(getattr(splits, split))} {split}" for split in SPLITS)
        found.notes.append(f"{len(splits.class_names)} classes; images: {counts}")
        _examine_images(card, splits, found, decode)
        if not found.remedy.startswith(CHMOD):
            found.remedy = ""  # nobody else has them
    found.state = FAULTY if found.faults else WHOLE
    return found


def _examine_images(
    card: DatasetCard, splits: Splits, found: Diagnosis, decode: int | None
) -> None:
    """Add the faults of the images, and the remedy for permissions or "repair" for damage."""
    assert found.folder is not None
    examples = all_examples(splits)
    folder = found.folder / card.image_dir
    paths = [example.path for example in examples]
    found.images = len(paths)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        found.faults.append(f"the image folder {folder} is missing")
        return
    present, gone, odd, empty = _sorted_out(folder, paths)
    locked = _locked(folder, gone)
    for place in locked[:SHOWN]:
        found.faults.append(f"{place} cannot be read: its permissions forbid it")
    if locked:
        found.remedy = _open_up([folder] if folder in locked else locked[:SHOWN])
        gone = [
            path for path in gone if not any(each in (folder / path).parents for each in locked)
        ]
    _tell(found.faults, gone, len(paths), "missing")
    _tell(found.faults, odd, len(paths), "not plain files")
    _tell(found.faults, empty, len(paths), "empty files")
    if folder in locked:
        return
    if gone:
        found.notes += _whereabouts(folder, gone)
    _note_links(folder, present, found)
    if card.layout == "split_file":
        _note_further_classes(folder, paths, found)
    chosen = present
    if decode is not None:
        odd_ends = suspicious(folder, spread(present, MOST_LOOKED_AT))
        chosen = list(dict.fromkeys(odd_ends + spread(present, decode)))
    bad = undecodable(folder, chosen, f"decode {card.name}")
    found.decoded = len(chosen)
    unreadable = [path for path in bad if not os.access(folder / path, os.R_OK)]
    _tell(found.faults, unreadable, len(paths), "not to be read: their permissions forbid it")
    damaged = [path for path in bad if path not in unreadable]
    _tell(found.faults, damaged, len(paths), "damaged")
    found.notes += [bad[path] for path in damaged[:SHOWN]]
    if unreadable and not locked:
        found.remedy = _open_up([folder])
    found.remedy = found.remedy or ("repair" if damaged or odd else "")


def _sorted_out(
    folder: Path, paths: list[str]
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return the paths that are images to all appearance, missing, no files, and empty files."""
    present: list[str] = []
    gone: list[str] = []
    odd: list[str] = []
    empty: list[str] = []
    for path in paths:
        file = folder / path
        if os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises on a locked folder
            (empty if is_empty_file(file) else present).append(path)
        else:
            (odd if os.path.exists(file) else gone).append(path)  # noqa: PTH110
    return present, gone, odd, empty


def _locked(folder: Path, gone: list[str]) -> list[Path]:
    """Return the folders that may not be entered or read, of those where images are not found."""
    parents = {folder, *(folder / Path(path).parent for path in gone)}
    return [
        each
        for each in sorted(parents)
        if os.path.isdir(each) and not os.access(each, os.R_OK | os.X_OK)  # noqa: PTH112
    ]


def _open_up(places: Sequence[Path | str]) -> str:
    return shlex.join([*CHMOD.split(), *map(str, places)])


def _compare_with_published(card: DatasetCard, splits: Splits, found: Diagnosis) -> None:
    """Note a split of the user's own, such as one that was cut down to the images at hand.

    Other classes are a fault, since figures of them are of another task; and so are fewer images
    where there is no split file to say which are meant.
    """
    counts = {split: len(getattr(splits, split)) for split in SPLITS}
    counts["classes"] = len(splits.class_names)
    if counts == card.sizes:
        if card.split_sha256 and splits.sha256 != card.split_sha256:
            found.notes.append(
                "the split file is your own: as long as the published one, with other entries"
            )
        return
    told = ", ".join(
        f"{counts[key]} of {size} {'classes' if key == 'classes' else f'{key} images'}"
        for key, size in card.sizes.items()
        if counts[key] != size
    )
    if card.layout == "split_file":
        said = f"the split file is your own, not the published one: {told}"
        other_classes = counts["classes"] != card.sizes["classes"]
        (found.faults if other_classes else found.notes).append(said)
    else:
        found.faults.append(f"{found.folder}: {told} are there")


def _whereabouts(folder: Path, gone: list[str]) -> list[str]:
    """Say if missing images are there under another case, or nested once too often."""
    notes: list[str] = []
    listed: dict[str, dict[str, str]] = {}
    for path in gone:
        inside = ""
        for name in path.split("/"):
            if inside not in listed:
                names = _names_in(folder / inside)
                listed[inside] = {each.lower(): each for each in names}
            there = listed[inside].get(name.lower())
            if there is None:
                break
            if there != name:
                place = folder / inside / there
                notes.append(f"{place} is there, but the lists name {name}: capitals matter")
                break
            inside = f"{inside}/{name}" if inside else name
    notes = list(dict.fromkeys(notes))
    nested = folder / folder.name
    if os.path.exists(nested / gone[0]):  # noqa: PTH110
        notes.append(f"missing images lie one folder too deep, in {nested}")
    return notes[:SHOWN]


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _note_links(folder: Path, paths: list[str], found: Diagnosis) -> None:
    """Note images that are links to elsewhere. They are followed: large sets are often linked."""
    root = os.path.realpath(folder)
    outside = [
        path
        for path in paths
        if os.path.islink(folder / path)  # noqa: PTH114 - a million times
        and not os.path.realpath(folder / path).startswith(f"{root}{os.sep}")
    ]
    _tell(found.notes, outside, found.images, f"links that lead out of {folder}, and are followed")


def _note_further_classes(folder: Path, paths: list[str], found: Diagnosis) -> None:
    """Note folders of images that no list names, where each class has a folder."""
    wanted = {path.split("/")[0] for path in paths if "/" in path}
    further = [
        name
        for name in sorted(set(_names_in(folder)) - wanted if wanted else ())
        if os.path.isdir(folder / name)  # noqa: PTH112
        and any(Path(each).suffix.lower() in _IMAGES for each in _names_in(folder / name)[:100])
    ]
    if further:
        more = f" and {len(further) - SHOWN} more" if len(further) > SHOWN else ""
        shown = ", ".join(further[:SHOWN])
        found.notes.append(f"folders of images that no list names, and no run reads: {shown}{more}")


def _tell(faults: list[str], paths: list[str], count: int, what: str) -> None:
    if paths:
        more = ", ..." if len(paths) > SHOWN else ""
        faults.append(f"{len(paths)} of {count} images {what}: {', '.join(paths[:SHOWN])}{more}")


def _is_there(card: DatasetCard, root: Path, folder: Path) -> bool:
    """Tell whether anything of a dataset is there. A split file in a flat collection is not."""
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


def _prepare(card: DatasetCard, root: Path, repair: bool = False) -> str:
    if not card.sources:
        return ""
    command = f"python -m so_clip prepare dataset={card.name} data_root={shlex.quote(str(root))}"
    if card.layout == "imagenet":
        return f"{command} {IMAGENET}FOLDER_WITH_TRAIN_AND_VAL"
    return f"{command} {REPAIR}" if repair else command
