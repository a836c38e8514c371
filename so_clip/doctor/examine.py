"""One dataset, examined: its split file, whether every image is there, and can be decoded."""

import os
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from so_clip.data.cards import DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Splits
from so_clip.data.own import OwnData, read_own
from so_clip.data.splits import dataset_folder, load_splits, split_file_places
from so_clip.errors import InputError
from so_clip.prepare.dataset import LAYOUTS
from so_clip.prepare.health import spread, suspicious, undecodable
from so_clip.prepare.lacking import all_examples, is_empty_file

WHOLE, FAULTY, ABSENT = "whole", "faulty", "absent"
SHOWN = 3  # of faults of one kind
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
        remedy: the one command that mends it; "" if nothing is wrong.
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
        fault = f"{error.filename or root} cannot be read: {error.strerror or error}"
        return Diagnosis(card.name, FAULTY, root / card.folder, faults=[fault])


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
    try:
        splits = load_splits(card, root)
    except InputError as error:
        found.faults.append(_without_advice(str(error), card))
        # A split file that is there is the user's own until told otherwise.
        found.remedy = _prepare(card, root, mend=_split_file(card, root) is not None)
    else:
        _examine_images(card, splits, found, decode)
        if found.faults:
            found.remedy = _prepare(card, root, mend=found.remedy != "")
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


def examine_own(name: str, own: OwnData, decode: int | None) -> Diagnosis:
    """Examine one's own images: as `examine` does; what cannot be listed at all is one fault."""
    found = Diagnosis(name, WHOLE, own.folder)
    try:
        card, splits, listing = read_own(own, name)
    except InputError as error:
        found.faults.append(str(error))
    else:
        found.notes += listing.notes
        counts = ", ".join(f"{len(getattr(splits, split))} {split}" for split in SPLITS)
        found.notes.append(f"{len(splits.class_names)} classes; images: {counts}")
        _examine_images(card, splits, found, decode)
        found.remedy = ""  # nobody else has them
    found.state = FAULTY if found.faults else WHOLE
    return found


def _examine_images(
    card: DatasetCard, splits: Splits, found: Diagnosis, decode: int | None
) -> None:
    """Add the faults of the images; a remedy other than "" stands for damage."""
    assert found.folder is not None
    examples = all_examples(splits)
    folder = found.folder / card.image_dir
    paths = [example.path for example in examples]
    found.images = len(paths)
    _compare_with_published(card, splits, found)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        found.faults.append(f"the image folder {folder} is missing")
        return
    present, gone, odd, empty = _sorted_out(folder, paths)
    _tell(found.faults, gone, len(paths), "missing")
    _tell(found.faults, odd, len(paths), "not plain files")
    _tell(found.faults, empty, len(paths), "empty files")
    if not os.access(folder, os.R_OK | os.X_OK):
        found.faults.append(f"{folder} cannot be read: its permissions forbid it")
        return
    if gone:
        found.notes += _whereabouts(folder, gone)
    chosen = present
    if decode is not None:
        odd_ends = suspicious(folder, spread(present, MOST_LOOKED_AT))
        chosen = list(dict.fromkeys(odd_ends + spread(present, decode)))
    bad = undecodable(folder, chosen, f"decode {card.name}")
    found.decoded = len(chosen)
    _tell(found.faults, list(bad), len(paths), "damaged")
    found.notes += [bad[path] for path in list(bad)[:SHOWN]]
    found.remedy = "mend" if bad or odd else ""


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
            (odd if os.path.isdir(file) else gone).append(path)  # noqa: PTH112
    return present, gone, odd, empty


def _compare_with_published(card: DatasetCard, splits: Splits, found: Diagnosis) -> None:
    """Note a split that was cut down; for lists without a split file, fewer images are a fault."""
    counts = {split: len(getattr(splits, split)) for split in SPLITS}
    counts["classes"] = len(splits.class_names)
    if counts == card.sizes:
        if card.split_sha256 and splits.sha256 != card.split_sha256:
            found.notes.append("the split file is of the published size, but not the published one")
        return
    told = "; ".join(
        f"{counts[key]} of {size} {'classes' if key == 'classes' else f'{key} images'}"
        for key, size in card.sizes.items()
        if counts[key] != size
    )
    if card.layout == "split_file":
        found.notes.append(f"the split file is not the published one: {told}")
    else:
        found.faults.append(f"{found.folder}: {told} are there")


def _whereabouts(folder: Path, gone: list[str]) -> list[str]:
    """Say if folders of missing images are there under another case, or nested once too often."""
    wanted = {path.split("/")[0] for path in gone if "/" in path}
    there = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    notes = [
        f"{folder} has a folder {name}, but the lists name {other}: capitals matter"
        for other in sorted(wanted - there)
        for name in sorted(there)
        if name.lower() == other.lower()
    ]
    nested = folder / folder.name
    if os.path.exists(nested / gone[0]):  # noqa: PTH110
        notes.append(f"missing images lie one folder too deep, in {nested}")
    return notes[:SHOWN]


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
    return " ".join(message.replace(how_to_get(card), "").split())


def _prepare(card: DatasetCard, root: Path, mend: bool = False) -> str:
    if not card.sources:
        return ""
    command = f"python -m so_clip.prepare dataset={card.name} data_root={shlex.quote(str(root))}"
    if card.layout == "imagenet":
        return f"{command} imagenet_dir=FOLDER_WITH_TRAIN_AND_VAL"
    return f"{command} mend=true" if mend else command


def worst(diagnoses: list[Diagnosis]) -> Counter[str]:
    """Return how many datasets are in each state."""
    return Counter(each.state for each in diagnoses)
