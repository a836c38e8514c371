"""Images that cannot be decoded: found before a run begins, and passed over if that is wished."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import PIL
from tqdm import tqdm

from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import FewShot
from so_clip.data.images import CorruptImage, ImageSource
from so_clip.errors import InputError, say
from so_clip.system import atomic
from so_clip.system.code_hash import code_sha256
from so_clip.system.safe_open import read_plain

Reasons = Mapping[str, str]
Find = Callable[[Sequence[str]], Reasons]


class Skipped(NamedTuple):
    """A corrupt image that a run does without: a row of skipped.csv."""

    dataset: str
    split: str
    path: str
    reason: str


def errors_of(
    images: ImageSource, paths: Iterable[str], what: str, workers: int | None = None
) -> dict[str, InputError]:
    """Decode images, in parallel; return those that cannot be, in order, with what they raised.

    Args:
        images: where to read them.
        paths: which; one that repeats is read once.
        what: for the progress bar, which a terminal alone shows.
        workers: threads, one at least; None takes as many as the machine's cores suggest.
    """

    def check(path: str) -> InputError | None:
        try:
            images.read(path).close()
        except InputError as error:
            return error
        return None

    listed = list(dict.fromkeys(paths))
    threads = None if workers is None else max(1, workers)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        found = tqdm(pool.map(check, listed), what, len(listed), unit="image", disable=None)
        return {path: error for path, error in zip(listed, found, strict=True) if error}


def corrupt_images(
    images: ImageSource, paths: Sequence[str], kept_in: Path | None, workers: int | None = None
) -> Reasons:
    """Return those of the images that are corrupt, in order, and why.

    That takes a decoding of them all, so what it came to is kept in a file: until the size or the
    date of one of the images is another, nothing is decoded again. Of a single image, such as one
    that may replace another in a draw, nothing is kept.

    Args:
        images: where they are.
        paths: which.
        kept_in: the folder of that file; None keeps nothing.
        workers: see errors_of.

    Raises:
        InputError: an image cannot be read for another reason, one that may pass.
    """
    paths = list(dict.fromkeys(paths))
    key = _key(images, paths) if kept_in and len(paths) > 1 else ""
    file = kept_in / f"corrupt-{key}.json" if kept_in and key else None
    if file and (known := _remembered(file, key, paths)) is not None:
        return known
    reasons = {}
    for path, error in errors_of(images, paths, "check", workers).items():
        if not isinstance(error, CorruptImage):
            raise error
        reasons[path] = error.reason
    if file:
        try:
            atomic.write_json(file, {"key": key, "corrupt": reasons})
        except InputError as error:
            say(f"which images are corrupt is not kept: {error}")
    return reasons


def _key(images: ImageSource, paths: Sequence[str]) -> str:
    """Return the SHA-256 of what tells changed files at a glance; "" where one is not there."""
    root = getattr(images, "root", None)
    if root is None:
        return ""
    decoder = PIL.__version__, code_sha256("data")
    total = hashlib.sha256(f"{decoder} {os.path.realpath(root)}\0".encode())
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118 - for a million
        except OSError:  # reading it will tell
            return ""
        total.update(f"{path}\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return total.hexdigest()


def _remembered(file: Path, key: str, paths: Sequence[str]) -> Reasons | None:
    try:
        values = json.loads(read_plain(file))
        corrupt = values["corrupt"]
        whole = values["key"] == key and all(isinstance(text, str) for text in corrupt.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return corrupt if whole and set(paths).issuperset(corrupt) else None


def pass_over_in_draw(
    few_shot: FewShot, splits: Splits, find: Find
) -> tuple[FewShot, list[Skipped]]:
    """Put other images of its class in the places of the corrupt ones among the few shots.

    They come from those that were not drawn, in an order that the seed and the class decide, and
    when there are none left, as in a class of fewer images than shots, from the readable ones that
    were. So each class keeps its number of images, and what was drawn well its place.

    Args:
        few_shot: as drawn, or cut down to the base classes.
        splits: whose train list has the same labels.
        find: returns the corrupt ones of some paths, and why.

    Raises:
        InputError: a class has no image that can be decoded.
    """
    corrupt = dict(find([example.path for example in few_shot.train]))
    if not corrupt:
        return few_shot, []
    drawn = {example.path for example in (*few_shot.train, *few_shot.val)}
    train = list(few_shot.train)
    for label in sorted({each.label for each in few_shot.train if each.path in corrupt}):
        places = [place for place, each in enumerate(few_shot.train) if each.label == label]
        well = [train[place] for place in places if train[place].path not in corrupt]
        others = {each.path: each for each in splits.train if each.label == label}
        others = {path: each for path, each in others.items() if path not in drawn}
        order = random.Random(f"{few_shot.seed} {label}").sample([*others], len(others))
        wanted = [place for place in places if train[place].path in corrupt]
        fresh: list[Example] = []
        for path in order:
            if len(fresh) == len(wanted):
                break
            reasons = find([path])
            corrupt |= reasons
            if path not in reasons:
                fresh.append(others[path])
        _fill(train, wanted, fresh, well)
        if not fresh and not well:
            raise _none_left(few_shot, splits, label, corrupt)
    skipped = [Skipped(splits.dataset, "train", *item) for item in corrupt.items()]
    return replace(few_shot, train=train), skipped


def _fill(
    train: list[Example], places: list[int], fresh: list[Example], well: list[Example]
) -> None:
    again = list(dict.fromkeys([*well, *fresh]))
    for turn, place in enumerate(places):
        if turn < len(fresh):
            train[place] = fresh[turn]
        elif again:
            train[place] = again[(turn - len(fresh)) % len(again)]


def _none_left(few_shot: FewShot, splits: Splits, label: int, corrupt: Reasons) -> InputError:
    first = next(each.path for each in few_shot.train if each.label == label)
    return InputError(
        f"on_corrupt=skip: class {label} ({splits.class_names[label]!r}) of {splits.dataset} has "
        f"no train image that can be decoded, so shots={few_shot.shots} cannot be drawn. The first "
        f"of them is {first}: {corrupt[first]} Mend them, or leave the class out."
    )


def pass_over_in_test(splits: Splits, find: Find) -> tuple[Splits, list[Skipped]]:
    """Leave corrupt images out of the test list; stderr names a class of which none is left.

    Raises:
        InputError: no image can be decoded.
    """
    corrupt = find([example.path for example in splits.test])
    if not corrupt:
        return splits, []
    test = [example for example in splits.test if example.path not in corrupt]
    if not test:
        path, reason = next(iter(corrupt.items()))
        raise InputError(
            f"on_corrupt=skip: none of the {len(splits.test)} test images of {splits.dataset} can "
            f"be decoded. The first of them is {path}: {reason}"
        )
    left = {example.label for example in test}
    for label in sorted({example.label for example in splits.test} - left):
        say(
            f"on_corrupt=skip: class {label} ({splits.class_names[label]!r}) of {splits.dataset} "
            "has no test image that can be decoded. It is not tested."
        )
    skipped = [Skipped(splits.dataset, "test", *item) for item in corrupt.items()]
    return replace(splits, test=test), skipped
