"""Images that cannot be decoded: found before a run starts, and removed with on_corrupt=skip."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from so_clip.data.decode import decoder_versions
from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import FewShot
from so_clip.data.images import CorruptImage, ImageSource
from so_clip.errors import InputError, say
from so_clip.system import atomic
from so_clip.system.code_hash import code_sha256
from so_clip.system.safe_open import read_plain
from so_clip.system.threads import in_threads

Reasons = Mapping[str, str]
Find = Callable[[Sequence[str]], Reasons]


class Skipped(NamedTuple):
    """A corrupt image that a run skips: a row of skipped.csv."""

    dataset: str
    split: str
    path: str
    reason: str


def errors_of(
    images: ImageSource, paths: Iterable[str], title: str, workers: int | None = None
) -> dict[str, InputError]:
    """Decode images in parallel; return the errors of the images that fail, in order.

    Args:
        images: the source of the images.
        paths: the images; a repeated path is read once.
        title: of the progress bar, which only a terminal shows.
        workers: threads, at least one is used; None: Python's default for the machine.
    """

    def check(path: str) -> InputError | None:
        try:
            images.read(path).close()
        except InputError as error:
            return error
        return None

    listed = list(dict.fromkeys(paths))
    threads = None if workers is None else max(1, workers)
    found = in_threads(check, listed, title, threads, unit="image")
    return {path: error for path, error in zip(listed, found, strict=True) if error}


def corrupt_images(
    images: ImageSource, paths: Sequence[str], cache_dir: Path | None, workers: int | None = None
) -> Reasons:
    """Return the corrupt images, in order, with reasons.

    This decodes all images, so a file keeps the result until the size or the date of an image
    changes. The result for a single image, such as a replacement in a draw, is not kept.

    Args:
        images: the source of the images.
        paths: the images.
        cache_dir: the folder of the file; None keeps nothing.
        workers: see errors_of.

    Raises:
        InputError: an image cannot be read for a reason that may pass.
    """
    paths = list(dict.fromkeys(paths))
    key = _key(images, paths) if cache_dir and len(paths) > 1 else ""
    file = cache_dir / f"corrupt-{key}.json" if cache_dir and key else None
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
            say(f"the list of corrupt images is not kept: {error}")
    return reasons


def _key(images: ImageSource, paths: Sequence[str]) -> str:
    """Return the SHA-256 of all paths, sizes and dates; "" if a file is missing."""
    root = getattr(images, "root", None)
    if root is None:
        return ""
    decoder = decoder_versions(), code_sha256("data")
    total = hashlib.sha256(f"{decoder} {os.path.realpath(root)}\0".encode())
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118 - for a million
        except OSError:  # reading it will raise the error
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


def replace_in_draw(few_shot: FewShot, splits: Splits, find: Find) -> tuple[FewShot, list[Skipped]]:
    """Replace the corrupt images of a few-shot draw by other images of their classes.

    The seed and the class decide the order of the images that were not drawn; these come first. If
    they are used up, as in a class with fewer images than shots, readable images of the draw
    repeat (split_protocol=coop too). So each class keeps its number of images, and readable images
    keep their places.

    Args:
        few_shot: the draw, or its base classes.
        splits: the lists; the train list has the same labels as the draw.
        find: returns the corrupt images among some paths, with reasons.

    Raises:
        InputError: a class has no image that can be decoded.
    """
    corrupt = dict(find([example.path for example in few_shot.train]))
    if not corrupt:
        return few_shot, []
    drawn = {example.path for example in (*few_shot.train, *few_shot.val)}
    train = list(few_shot.train)
    for label in sorted({example.label for example in train if example.path in corrupt}):
        of_class = [index for index, example in enumerate(train) if example.label == label]
        bad = [index for index in of_class if train[index].path in corrupt]
        readable = [train[index] for index in of_class if train[index].path not in corrupt]
        others = {example.path: example for example in splits.train if example.label == label}
        others = {path: example for path, example in others.items() if path not in drawn}
        fresh: list[Example] = []
        for path in random.Random(f"{few_shot.seed} {label}").sample([*others], len(others)):
            if len(fresh) == len(bad):
                break
            reasons = find([path])
            corrupt |= reasons
            if path not in reasons:
                fresh.append(others[path])
        repeated = list(dict.fromkeys([*readable, *fresh]))
        if not repeated:
            first = train[of_class[0]].path
            raise InputError(
                f"on_corrupt=skip: class {label} ({splits.class_names[label]!r}) of "
                f"{splits.dataset} has no train image that can be decoded, so "
                f"shots={few_shot.shots} cannot be drawn. The first of them is {first}: "
                f"{corrupt[first]} Repair them, or leave the class out."
            )
        for turn, index in enumerate(bad):
            late = turn - len(fresh)
            train[index] = fresh[turn] if late < 0 else repeated[late % len(repeated)]
    skipped = [Skipped(splits.dataset, "train", *item) for item in corrupt.items()]
    return replace(few_shot, train=train), skipped


def remove_from_test(splits: Splits, find: Find) -> tuple[Splits, list[Skipped]]:
    """Remove corrupt images from the test list; stderr names a class without any image left.

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
