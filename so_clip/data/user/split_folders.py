"""Decide whether the folders of a user's images are splits or classes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from so_clip.data.examples import SPLITS
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import composed
from so_clip.data.user.listing import is_unusual, splits_of
from so_clip.errors import InputError, nearest
from so_clip.system.commands import command, override

_ALL_CLASSES = "If all are classes, add dataset.split=drawn."


class Content(NamedTuple):
    """The visible content of a folder: names of its folders, and the number of its images."""

    folders: tuple[str, ...]
    images: int
    is_known: bool = True  # False if the folder cannot be listed

    @property
    def is_empty(self) -> bool:
        """Whether the folder holds neither folders nor images, such as one of notes."""
        return self.is_known and not self.folders and not self.images


@dataclass(frozen=True)
class Layout:
    """How the folders in the root are read.

    Attributes:
        splits: the split of each folder of splits, by its path below the root. If it is empty, the
            folders in the root are classes.
        inside: the split of each folder inside the folders of classes, by its name.
        skipped: folders in the root that are no split.
        notes: sentences about names with another reading.
    """

    splits: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_layout(
    root: Path,
    names: Sequence[str],
    choice: str,
    chosen: Mapping[str, Sequence[str]],
    look: Callable[[Path], Content],
) -> Layout:
    """Decide what the folders in `root` are.

    Args:
        root: the folder of all images.
        names: the folders in it.
        choice: "auto", "folders" or "drawn"; see list_folder.
        chosen: the folders of each split by the user's options, as paths below `root`.
        look: returns the content of a folder.

    Raises:
        InputError: two readings, half a split, or images without a label. The message has the
            option for each reading.
    """
    names = sorted(names)
    if any(chosen.values()):
        if choice == "drawn":
            raise InputError(
                "dataset.split=drawn: the folders of splits are given too. Leave one of them out."
            )
        return _chosen(root, names, chosen, look)
    if choice == "drawn":
        return Layout()
    contents = {name: look(root / name) for name in names}
    words = splits_of(names)
    empty = [name for name in names if contents[name].is_empty and name not in words]
    if len(empty) < len(names):
        names = [name for name in names if name not in empty]
        contents = {name: contents[name] for name in names}
    places = _unwrapped(root, contents, look)
    inner = {place.partition("/")[0]: place for place in places}
    splits = _by_words(root, inner, choice) or _by_parts_of_words(root, inner)
    if splits:
        return replace(_of_splits(root, splits, places), skipped=tuple(empty))
    if choice == "folders":
        raise InputError(
            f"{root}: no folder in it has the name of a split, such as train/ and test/. Name "
            "them: dataset.train_folder=FOLDER dataset.test_folder=FOLDER."
        )
    inside = splits_of({name for content in contents.values() for name in content.folders})
    if _all_inside(contents, inside):
        note = f"the folders of classes hold splits: {_pairs(inside)}"
        return Layout(inside=inside, notes=(note,))
    for found in (contents, places):
        if same := _same_folders(found):
            raise _two_readings(root, same, found)
    return Layout()


def _by_words(root: Path, inner: Mapping[str, str], choice: str) -> dict[str, str]:
    """Return the split of each folder if all have the names of splits; {} for classes.

    Args:
        root: the folder of all images.
        inner: the path of each folder in it, or of the folder inside a wrapper, by its name.
        choice: "auto" or "folders".
    """
    names = list(inner)
    known = splits_of(names)
    splits = list(known.values())
    others = [name for name in names if name not in known]
    if not known or (choice == "auto" and "train" not in splits):
        return {}
    if choice == "auto" and others and "test" not in splits:
        return {}  # train may be the name of a class
    of = {split: inner[name] for name, split in known.items()}
    if others:
        raise _not_all_splits(root, known, others, of)
    if len(names) == 1:
        alone = command(override("dataset.folder", root / inner[names[0]]), program=())
        raise InputError(
            f"{root}: there is {names[0]}, but no other split. To draw a split from its images, "
            f"add {alone}."
        )
    for split in SPLITS:
        if splits.count(split) > 1:
            same = [name for name in names if known[name] == split]
            raise InputError(
                f"{root}: {' and '.join(same)} are both {split}. Merge them, or name the splits: "
                f"{_options('TRAIN', 'TEST')}. {_ALL_CLASSES}"
            )
    for split in ("train", "test"):
        if split not in splits:
            named = _options(of.get("train", "TRAIN"), of.get("val", "TEST"))
            raise InputError(
                f"{root}: there is {' and '.join(names)}, but no {split}/. Name the folders of "
                f"both: {named}. Or put the folders of all classes directly into "
                f"{root}, and the split is drawn. {_ALL_CLASSES}"
            )
    return known


def _by_parts_of_words(root: Path, inner: Mapping[str, str]) -> dict[str, str]:
    """Return the splits of names such as seg_train and seg_test, or train2017 and val2017.

    One part of each name must be the word of a split, and the rest the same in all of these names.
    See `_by_words` for the arguments.
    """
    parts = {name: re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+|\d+", name) for name in inner}
    words = {name: splits_of(found) for name, found in parts.items()}
    word = {name: next(iter(found)) for name, found in words.items() if len(found) == 1}
    rests = {tuple(part.lower() for part in parts[name] if part != word[name]) for name in word}
    by_word = splits_of(word.values())
    splits = {name: by_word[word[name]] for name in word}
    once = len(set(splits.values())) == len(splits)
    if len(rests) != 1 or not once or not {"train", "test"} <= {*splits.values()}:
        return {}
    if others := [name for name in inner if name not in splits]:
        of = {split: inner[name] for name, split in splits.items()}
        raise _not_all_splits(root, splits, others, of)
    return splits


def _not_all_splits(
    root: Path, splits: Mapping[str, str], others: Sequence[str], of: Mapping[str, str]
) -> InputError:
    """Return the message about folders beside splits. `of` is the path of each split."""
    named = _options(of.get("train", "TRAIN"), of.get("test", "TEST"))
    return InputError(
        f"{root}: {', '.join(sorted(splits))} are splits, but {others[0]} is not. Move it away, "
        f"or name the splits: {named}. {_ALL_CLASSES}"
    )


def _unwrapped(
    root: Path, contents: Mapping[str, Content], look: Callable[[Path], Content]
) -> dict[str, Content]:
    """Return path and content of each folder, without wrappers such as in seg_train/seg_train.

    A folder is a wrapper if it, and each folder beside it that has folders, hold one folder and
    nothing else. At least two of the folders inside must hold folders again.
    """
    inner = {}
    for name, content in contents.items():
        if not content.folders:
            inner[name] = content
            continue
        if len(content.folders) != 1 or content.images:
            return dict(contents)
        place = f"{name}/{content.folders[0]}"
        inner[place] = look(root / place)
    nested = [content for content in inner.values() if content.folders]
    return inner if len(nested) > 1 else dict(contents)


def _same_folders(contents: Mapping[str, Content]) -> dict[str, list[str]]:
    """Return the folders that hold two or more folders of the same names, with these names.

    Not all of these folders also hold images, as the folders of classes with folders inside do. Up
    to half of the folders may hold images alone, such as images without labels. Names may differ in
    case.
    """
    holders = {name: content for name, content in contents.items() if content.folders}
    if len(holders) < 2 or 2 * len(holders) < len(contents):
        return {}
    if all(content.images for content in holders.values()):
        return {}
    held = [
        {composed(name).casefold(): name for name in content.folders}
        for content in holders.values()
    ]
    same = sorted(name for key, name in held[0].items() if all(key in names for names in held))
    return dict.fromkeys(holders, same) if len(same) > 1 else {}


def _of_splits(root: Path, splits: Mapping[str, str], places: Mapping[str, Content]) -> Layout:
    unusual = {name: split for name, split in splits.items() if is_unusual(name)}
    notes = [f"folders are read as splits: {_pairs(unusual)}. {_ALL_CLASSES[:-1]}"]
    found = {place: splits[place.partition("/")[0]] for place in places}
    _check_labels(root, found, places)
    return Layout(found, notes=tuple(notes if unusual else ()))


def _check_labels(root: Path, splits: Mapping[str, str], contents: Mapping[str, Content]) -> None:
    """Refuse images for training or testing that are in no folder of a class."""
    trained = {
        composed(name)
        for place, split in splits.items()
        if split == "train"
        for name in contents[place].folders
    }
    bad, problem = [], ""
    for place, split in sorted(splits.items()):
        folders, images = contents[place].folders, contents[place].images
        if split == "val":
            continue
        if images and not folders:
            bad.append(place)
            problem = f"{problem}, and " if problem else ""
            problem += f"{place}/ holds {images} images, but no folder of a class"
        elif split == "test" and trained and folders and not trained & set(map(composed, folders)):
            bad.append(place)
            problem = f"{place}/ holds {_few(folders)}, but no folder of a class that is trained"
    if not bad:
        return
    way_out = (
        "so these images have no label. Put each into the folder of its class, or list path and "
        f"label of each image in a CSV file (dataset=csv). {_ALL_CLASSES}"
    )
    labelled = {split: place for place, split in splits.items() if place not in bad}
    if "train" in labelled:
        val = labelled.get("val")
        folder = command(override("dataset.folder", root / labelled["train"]), program=())
        tested = f"; to test on {val}/, add {_options(labelled['train'], val)}" if val else ""
        way_out = (
            "so these images have no label, and cannot be tested on. To draw a split from the "
            f"images of {labelled['train']}/, add {folder}{tested}. If you know the "
            "labels, put each image into the folder of its class."
        )
    raise InputError(f"{root}: {problem}, {way_out}")


def _all_inside(contents: Mapping[str, Content], inside: Mapping[str, str]) -> bool:
    """Return whether all folders of classes hold folders of splits, and nothing else."""
    held = [set(content.folders) for content in contents.values()]
    pure = all(folders and folders <= {*inside} for folders in held)
    images = any(content.images for content in contents.values())
    return len(held) > 1 and pure and not images and {"train", "test"} <= {*inside.values()}


def _two_readings(
    root: Path, same: Mapping[str, Sequence[str]], contents: Mapping[str, Content]
) -> InputError:
    folders = _few(next(iter(same.values())))
    of = {place.partition("/")[0]: place for place in same}
    known = splits_of(of)
    # The name of a split decides first; the others are offered in order.
    ranks = {"train": 0, "val": 1, None: 1, "test": 2}
    ranked = sorted(of, key=lambda name: ranks[known.get(name)])
    train = ranked[0]
    test = next((name for name in ranked if known.get(name) == "test"), ranked[1])
    every = _few([place.partition("/")[0] for place in contents])
    return InputError(
        f"{root}: {_few(of)} hold folders of the same names: {folders}. If {folders} are the "
        f"classes, say which folder is which split: {_options(of[train], of[test])}. If {every} "
        "are the classes, add dataset.split=drawn."
    )


def _chosen(
    root: Path,
    names: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    look: Callable[[Path], Content],
) -> Layout:
    """Check the folders that the user's options give for each split."""
    for split in ("train", "test"):
        if not chosen.get(split):
            raise InputError(
                f"dataset.{split}_folder is missing: training and test images both need a folder."
            )
    splits: dict[str, str] = {}
    for split, folders in chosen.items():
        for text in folders:
            key, place = f"dataset.{split}_folder={text}", text.strip("/")
            if reason := why_outside(place):
                raise InputError(f"{key}: {reason}. Give a folder below {root}.")
            if not (root / place).is_dir():
                near = nearest(place, names)
                raise InputError(f"{key}: there is no such folder in {root}.{near}")
            for other in splits:
                if f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/"):
                    raise InputError(f"{key}: its images are in {other} too. Name each once.")
            splits[place] = split
    contents = {place: look(root / place) for place in splits}
    _check_labels(root, splits, contents)
    used = {place.partition("/")[0] for place in splits}
    return Layout(splits, skipped=tuple(name for name in names if name not in used))


def _options(train: str, test: str) -> str:
    named = {"dataset.train_folder": train, "dataset.test_folder": test}
    return command(*(override(name, folder) for name, folder in named.items()), program=())


def _pairs(splits: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is {split}" for name, split in sorted(splits.items()))


def _few(names: Iterable[str], most: int = 4) -> str:
    """Return names as text; the first of them if there are many."""
    listed = list(names)
    if len(listed) > most:
        return f"{', '.join(listed[:most])}, ... ({len(listed)} folders)"
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else listed[0]
