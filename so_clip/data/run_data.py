"""The data of a run: lists, few-shot draw and images, checked before torch is imported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from so_clip.data.base_to_new import base_and_new
from so_clip.data.cache.corrupt import Skipped, corrupt_images, remove_from_test, replace_in_draw
from so_clip.data.cards.card import DatasetCard
from so_clip.data.choice import DataChoice
from so_clip.data.examples import SKIP, Splits
from so_clip.data.fewshot import FewShot, draw_few_shot
from so_clip.data.find import Dataset, find_dataset
from so_clip.data.images import ImageSource, open_images, require_images
from so_clip.errors import InputError, note

# The name of the second half of the classes among a run's test sets.
NEW_CLASSES = "new_classes"
# The list of images that runs are tested on.
TEST = "test"


@dataclass(frozen=True)
class TestSet:
    """Test images and their candidate classes.

    Attributes:
        name: the name of its files in the run's folder; "" for the run's own dataset.
        card, splits, images: of its dataset; labels count from 0.
        columns: the labels of its classes in the run's dataset; None if the text tower must embed
            its class names.
        first_label: the label in the dataset that has label 0 here.
    """

    name: str
    card: DatasetCard
    splits: Splits
    images: ImageSource
    columns: tuple[int, ...] | None = None
    first_label: int = 0


@dataclass(frozen=True)
class Data:
    """The data of one run: a card and its lists, the images, and the few-shot draw.

    `others` are further test sets: the new classes of a base-to-new run, and other datasets.
    `tested_on` is "test", the name of another list, or "training" if a script has put training
    images into `splits.test`.
    `skipped` are the corrupt images that were removed from the lists.
    """

    card: DatasetCard
    splits: Splits
    images: ImageSource
    few_shot: FewShot | None
    others: tuple[TestSet, ...] = ()
    tested_on: str = TEST
    skipped: tuple[Skipped, ...] = ()

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        """All test sets, the run's own test split first."""
        return (TestSet("", self.card, self.splits, self.images), *self.others)


def gather(
    choice: DataChoice,
    *,
    cache_dir: Path | None = None,
    workers: int | None = None,
    split: str = TEST,
    images: ImageSource | None = None,
) -> Data:
    """Read the datasets' lists, draw the few-shot images, and check that every image is there.

    Args:
        choice: datasets, draw, protocol and prompts. `shots` 0 draws no image, and neither does
            a run of tasks: see so_clip.tasks.
        cache_dir: folder of files that record which images are corrupt, so that each is decoded
            once.
        workers: threads that decode to find corrupt images; see so_clip.data.cache.corrupt.
        split: the list whose images are tested: "train", "val" or "test".
        images: of the run's own dataset; None: the files in its folder.

    Raises:
        InputError: no such dataset, files missing or malformed; the message names them.
    """
    name, data_root, template = choice.dataset, choice.data_root, choice.template
    trains, user = choice.shots > 0, choice.user_data
    found = find_dataset(
        name,
        data_root,
        choice.split_file,
        user=user,
        template=template,
        trains=trains,
        cards_dir=choice.cards_dir,
    )
    card, splits = found.card, _with_split(found.splits, split, name)
    few_shot = draw(splits, choice) if choice.shots and not choice.tasks else None
    images = images or open_images(card, found.root)
    whole, new_classes = splits, []
    if choice.base_to_new:
        splits, new = base_and_new(splits)
        first = len(splits.class_names)
        new_classes.append(TestSet(NEW_CLASSES, card, new, images, first_label=first))
    transferred = [_transfer_test_set(other, choice) for other in choice.transfer]
    others = (*new_classes, *transferred)
    _check_names([name, *(test_set.name for test_set in transferred)])
    _check_names([test_set.name for test_set in others])
    require_images(images, [*(few_shot.train if few_shot else ()), *splits.test], card)
    for test_set in others:
        require_images(test_set.images, test_set.splits.test, test_set.card)
    if few_shot:
        _note_repeats(few_shot, splits)
    _print_notes(found)
    _note_incomplete(card, whole)
    for test_set in transferred:
        _note_incomplete(test_set.card, test_set.splits)
    data = Data(card, splits, images, few_shot, others, tested_on=split)
    return _without_corrupt(data, cache_dir, workers) if choice.on_corrupt == SKIP else data


def _with_split(splits: Splits, split: str, name: str) -> Splits:
    """Return the lists with the images of `split` in place of the test images."""
    if split == TEST:
        return splits
    examples = getattr(splits, split)
    if not examples:
        raise InputError(f"split={split}: {name} has no {split} images. Use split={TEST}.")
    return replace(splits, test=examples)


def draw(splits: Splits, choice: DataChoice) -> FewShot:
    """Return the few-shot draw of a choice; base_to_new keeps that of the first half of classes."""
    few_shot = draw_few_shot(
        splits, choice.shots, choice.seed, choice.split_protocol, choice.imbalance
    )
    return few_shot.of_base_classes(len(splits.class_names)) if choice.base_to_new else few_shot


def _without_corrupt(data: Data, cache_dir: Path | None, workers: int | None) -> Data:
    """Remove the corrupt images from the draw and all test lists, and print their number."""
    few_shot, splits = data.few_shot, data.splits
    skipped: list[Skipped] = []
    find = partial(corrupt_images, data.images, cache_dir=cache_dir, workers=workers)
    if few_shot:
        few_shot, skipped = replace_in_draw(few_shot, splits, find)
    splits, of_test = remove_from_test(splits, find)
    skipped += of_test
    others = []
    for test_set in data.others:
        find = partial(corrupt_images, test_set.images, cache_dir=cache_dir, workers=workers)
        left, of_test = remove_from_test(test_set.splits, find)
        skipped += of_test
        others.append(replace(test_set, splits=left))
    if skipped:
        counts = Counter(image.split for image in skipped)
        note(
            f"on_corrupt=skip: {counts['train']} training and {counts['test']} test "
            "images cannot be decoded. The run skips them; its skipped.csv lists them."
        )
    return replace(
        data, splits=splits, few_shot=few_shot, others=tuple(others), skipped=tuple(skipped)
    )


def _transfer_test_set(name: str, choice: DataChoice) -> TestSet:
    try:
        found = find_dataset(
            name, choice.data_root, template=choice.template, cards_dir=choice.cards_dir
        )
        images = open_images(found.card, found.root)
    except InputError as error:
        raise InputError(f"transfer={name}: {error}") from error
    _print_notes(found)
    card, splits = found.card, found.splits
    # Without base_to_new, the classes of such a dataset are among those of the run.
    shared = card.classes_of == choice.dataset and not choice.base_to_new
    return TestSet(card.name, card, splits, images, splits.parent_labels if shared else None)


def _check_names(names: Sequence[str]) -> None:
    """Refuse two test sets with the same name, such as two folders with the same name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(
                f"transfer: {count} test sets have the name {name}. Rename a folder, or give the "
                "run's own images another name with dataset.name=NAME."
            )


def _print_notes(found: Dataset) -> None:
    for remark in found.notes:
        note(f"{found.card.title}: {remark}.")


def _note_repeats(few_shot: FewShot, splits: Splits) -> None:
    """Print the number of classes with fewer images than shots, and what the draw does there."""
    available = Counter(example.label for example in splits.train)
    drawn = Counter(example.label for example in few_shot.train)
    wanted = Counter(dict.fromkeys(drawn, few_shot.shots)) if few_shot.imbalance is None else drawn
    small = [label for label, count in sorted(wanted.items()) if count > available[label]]
    if small:
        first = small[0]
        repeats = drawn[first] > available[first]
        note(
            f"shots={few_shot.shots}: {len(small)} of {len(drawn)} classes have fewer "
            f"training images than that, such as {splits.class_names[first]!r} with "
            f"{available[first]}. "
            + ("Some" if repeats else "All")
            + " of their images are drawn"
            + (" more than once." if repeats else ", each once.")
        )


def _note_incomplete(card: DatasetCard, splits: Splits) -> None:
    """Print the size of a dataset of class folders if some of its folders or images are missing."""
    found = len(splits.class_names), len(splits.test)
    full = card.sizes["classes"], card.sizes["test"]
    if card.test_only and found != full:
        note(
            f"{card.title}: only {found[0]} of {full[0]} classes and {found[1]} of {full[1]} "
            "images exist. The accuracy is about these."
        )
