"""The few-shot images of an adaptation: drawn from a folder, a list, a dataset or memory."""

from __future__ import annotations  # help(few_shot) shows the names of types

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from so_clip.api.images import LIST_FILE, GivenImages, Labelled, given_images
from so_clip.api.options import plain, python_words, settings_of
from so_clip.config.settings import DATA_OPTIONS
from so_clip.config.user_data import CsvDataset, FolderDataset
from so_clip.data.cards.card import known_cards
from so_clip.data.choice import DataChoice
from so_clip.data.examples import Example
from so_clip.data.run_data import Data, gather
from so_clip.data.user.folder import SUFFIXES
from so_clip.errors import InputError, nearest
from so_clip.system.commands import override

_TOP = tuple(name for name in DATA_OPTIONS if name not in ("shots", "seed", "tasks"))
_MEMORY = "memory"
# The options of each kind of source that are dataset.NAME on the command line.
_OF_DATASET = {
    "folder": tuple(
        name for name in FolderDataset.model_fields if name not in ("layout", "folder")
    ),
    "csv": tuple(name for name in CsvDataset.model_fields if name not in ("layout", "csv_file")),
    "card": ("split_file",),
    _MEMORY: ("name",),
}


class _ListFile:
    """The list of a dataset in memory, in a temporary folder that ends with this object."""

    def __init__(self, text: str) -> None:
        folder = mkdtemp(prefix="so_clip-")
        self.remove = finalize(self, rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / LIST_FILE
        self.path.write_text(text, encoding="utf-8")


@dataclass(frozen=True, eq=False, repr=False)
class FewShots:
    """Few-shot images of each class, and the test images.

    Attributes:
        choice: the options of the draw.
        data: lists, images and draw, as a run has them.
        overrides: the options, as on the command line.
    """

    choice: DataChoice
    data: Data
    overrides: tuple[str, ...]
    _list: _ListFile | None = None  # adapt reads it again

    def __repr__(self) -> str:
        tested = len(self.data.splits.test) if self.data.tested_on == "test" else 0
        return (
            f"<FewShots of {self.choice.dataset}: {len(self.class_names)} classes, "
            f"{len(self.train)} images (shots={self.choice.shots}, seed={self.choice.seed}), "
            f"{len(self.val)} to validate, {tested} to test>"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self.data.splits.class_names)

    @property
    def train(self) -> list[tuple[str, str]]:
        """Path and class name of each training image, in the order of the draw.

        An image without a file has its place among the given ones, such as "train/0000002".
        """
        return self._named(self._draw.train)

    @property
    def val(self) -> list[tuple[str, str]]:
        """Path and class name of each validation image. They calibrate confidences."""
        return self._named(self._draw.val)

    def as_json(self) -> dict[str, Any]:
        """Return the content of a run's fewshot.json."""
        return self._draw.as_json()

    @property
    def _draw(self) -> Any:
        assert self.data.few_shot is not None
        return self.data.few_shot

    def _named(self, examples: list[Example]) -> list[tuple[str, str]]:
        images = self.data.images
        files = images.files if isinstance(images, GivenImages) else {}
        return [(files.get(path, path), self.class_names[label]) for path, label in examples]


def few_shot(
    source: str | os.PathLike[str] | Labelled,
    shots: int = 4,
    seed: int = 1,
    *,
    val: Labelled | None = None,
    test: Labelled | None = None,
    **options: Any,
) -> FewShots:
    """Draw the few-shot images, as a run of the command line with these options does.

    Args:
        source: one of
            - a folder with one folder per class: dataset=folder
            - a CSV file with the columns path, label and (optional) split: dataset=csv
            - the name of a dataset, such as "eurosat" (with data_root=FOLDER) or "digits". A
              folder of the same name is given as "./eurosat".
            - images in memory: {class name: images}, or a list of (image, class name). An image is
              a path, a PIL image, a uint8 tensor [3, height, width] or an array [height, width, 3].
              All of them are training images.
        shots: training images per class.
        seed: chooses these images and every other random draw of the adaptation.
        val: validation images, for a source in memory.
        test: test images, for a source in memory.
        options: the other options of the command line for the data: split_protocol, template,
            imbalance, protocol, transfer, on_corrupt, cards_dir, data_root; and without "dataset."
            those of the dataset: split, split_shares, split_seed, class_names, train_folder,
            path_column, split_file, and so on.

    Returns:
        The images.

    Raises:
        InputError: the source or an option cannot be used.

    Example:
        >>> few = so_clip.few_shot("photos/", shots=4, seed=1)
        >>> few = so_clip.few_shot({"cat": ["a.jpg", "b.jpg"], "dog": ["c.jpg", "d.jpg"]}, shots=2)
        >>> few = so_clip.few_shot("eurosat", shots=16, data_root="~/data", template="specific")
    """
    kind = _kind(source, options.get("cards_dir"))
    if kind != _MEMORY and (val is not None or test is not None):
        name = "val" if val is not None else "test"
        raise InputError(
            f"{name}: goes with images in memory. A folder, list or dataset has its own images to "
            "validate and to test."
        )
    known = (*_TOP, *_OF_DATASET[kind])
    for name in options:
        if name not in known:
            raise InputError(
                f"{name}: few_shot has no such argument for this source."
                f"{nearest(name, (*known, 'shots', 'seed', 'val', 'test'))} It "
                f"has {', '.join(known)}."
            )
    chosen = {"shots": shots, "seed": seed, **options}
    if kind == _MEMORY:
        return _from_memory(source, chosen, val, test)
    return _drawn(_overrides(kind, _places(source, kind), chosen))


def _kind(source: Any, cards_dir: Any) -> str:
    if not isinstance(source, (str, os.PathLike)):
        return _MEMORY
    names = known_cards(None if cards_dir is None else Path(cards_dir).expanduser())
    if source in names:
        return "card"
    path = Path(source).expanduser()
    if path.is_dir():
        return "folder"
    if path.suffix.lower() in SUFFIXES:
        raise InputError(
            f"source={os.fspath(source)!r}: is the name of an image. Give a folder with one folder "
            "of images per class, or a CSV file."
        )
    if path.is_file():
        return "csv"
    raise InputError(
        f"source={os.fspath(source)!r}: there is no such folder, CSV file or dataset."
        f"{nearest(str(source), names)} Datasets: {', '.join(names)}."
    )


def _places(source: Any, kind: str) -> dict[str, Any]:
    """Return the options that name the source."""
    if kind == "card":
        return {"dataset": source}
    path = os.path.abspath(Path(source).expanduser())  # noqa: PTH100 - keeps ..
    if kind == "folder":
        return {"dataset": kind, "dataset.folder": path}
    return {"dataset": kind, "dataset.folder": os.path.dirname(path), "dataset.csv_file": path}  # noqa: PTH120


def _overrides(kind: str, places: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """Return overrides; options win over the places, such as another folder of a list's images."""
    prefixed = {
        f"dataset.{name}" if name in _OF_DATASET[kind] else name: value
        for name, value in chosen.items()
    }
    return [override(name, plain(value)) for name, value in {**places, **prefixed}.items()]


def _drawn(
    overrides: list[str], images: GivenImages | None = None, file: _ListFile | None = None
) -> FewShots:
    options = {name for names in _OF_DATASET.values() for name in names}
    with python_words("dataset", options, {str(file.path): "source"} if file else None):
        settings = settings_of(overrides)
        choice = settings.data
        data = gather(choice, workers=settings.evaluation.workers, images=images)
    # An experiment must not change the options of a draw that is made.
    fixed = [override(name, plain(getattr(choice, name))) for name in _TOP]
    return FewShots(choice, data, tuple(dict.fromkeys([*overrides, *fixed])), file)


def _from_memory(
    source: Any, chosen: Mapping[str, Any], val: Labelled | None, test: Labelled | None
) -> FewShots:
    images, text = given_images(source, val, test)
    file = _ListFile(text)
    places = {**_places(file.path, "csv"), "dataset.name": _MEMORY}
    few = _drawn(_overrides(_MEMORY, places, chosen), images, file)
    if test is not None:
        return few
    drawn = few.data.few_shot
    assert drawn is not None
    splits = replace(few.data.splits, test=list(dict.fromkeys(drawn.train)))
    return replace(few, data=replace(few.data, splits=splits, tested_on="training"))
