"""The few-shot images of a run: exactly the published draws of CoOp and CLIP-LoRA."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from so_clip.data.base_to_new import base_count, with_labels
from so_clip.data.examples import Example, Splits
from so_clip.data.imbalance import class_counts, draw_count
from so_clip.errors import InputError

# Both protocols hold back at most this many validation images per class.
MAX_VAL_SHOTS = 4


@dataclass(frozen=True)
class FewShot:
    """The drawn images: the content of a run's `fewshot.json`.

    Attributes:
        train, val: the drawn examples, in the order of the draw. If a class has fewer images than
            shots, "clip_lora" repeats some of them and "coop" takes each of them once.
        dataset, shots, seed, protocol: the arguments of the draw.
        imbalance: alpha, if classes have different numbers of train images.
        base_only: whether only the base classes of the draw are left.
    """

    train: list[Example]
    val: list[Example]
    dataset: str
    shots: int
    seed: int
    protocol: str
    imbalance: float | None = None
    base_only: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of {"train": ..., "val": ...}: keys sorted, no blanks."""
        lists = {"train": self.train, "val": self.val}  # JSON writes tuples as lists
        text = json.dumps(lists, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the document of `fewshot.json`; `train` and `val` are lists of [path, label].

        Base-to-new runs have the key `classes`. Imbalanced draws have `imbalance` and `counts`,
        the number of train images by label.
        """
        special: dict[str, Any] = {"classes": "base"} if self.base_only else {}
        if self.imbalance is not None:
            counts = Counter(label for _, label in self.train)
            special["imbalance"] = self.imbalance
            special["counts"] = [counts[label] for label in sorted(counts)]
        return {
            "dataset": self.dataset,
            "shots": self.shots,
            "seed": self.seed,
            "split_protocol": self.protocol,
            **special,
            "train": [list(example) for example in self.train],
            "val": [list(example) for example in self.val],
            "sha256": self.sha256,
        }

    def of_base_classes(self, classes: int) -> "FewShot":
        """Return the draw of the first half of `classes` classes only, as CoOp's code does."""
        base = base_count(classes)
        train, val = (with_labels(drawn, 0, base) for drawn in (self.train, self.val))
        return replace(self, train=train, val=val, base_only=True)


def draw_few_shot(
    splits: Splits, shots: int, seed: int, split_protocol: str, imbalance: float | None = None
) -> FewShot:
    """Draw `shots` train and min(4, shots) val images per class, as the published code does.

    One stream random.Random(seed) draws both lists; Python's global generator is never used.
    Classes come in order of their first appearance in a list. A class with enough images is drawn
    without replacement. "coop" draws train, then val, and takes a smaller class whole, each image
    once and without a random number. "clip_lora" (SO's protocol too) draws val, then train, and
    draws a smaller class with replacement.

    ImageNet has no val list. "coop" then draws train only: CoOp validates on the test images, and
    no run here does that. CoOp's list has the order of the directory on its authors' disk, so
    nobody can repeat its draws of ImageNet. "clip_lora" draws shots + min(4, shots) train images
    per class at once, and the first `shots` of them are train.

    With `imbalance`, the stream first draws the number of train images of each class (see
    class_counts). Their sum stays the same, so a small class repeats its images.

    Args:
        splits: the dataset's lists.
        shots: train images per class, 1 or more; with `imbalance` on average, with "coop" at most.
        seed: 0 or more; the published draws have seeds 1, 2 and 3.
        split_protocol: "coop" or "clip_lora".
        imbalance: alpha of the Dirichlet distribution; None: equal counts.

    Raises:
        InputError: a class without a train image, or an ImageNet class with too few images for
            train and val.

    Source: generate_fewshot_dataset in github.com/KaiyangZhou/Dassl.pytorch (repeat=False) and
        github.com/MaxZanella/CLIP-LoRA; datasets/imagenet.py of both CoOp and CLIP-LoRA.
    """
    _check_classes(splits, shots)
    stream = random.Random(seed)
    val_shots = min(MAX_VAL_SHOTS, shots)
    shared = split_protocol == "clip_lora" and splits.val_from_train
    held_back = val_shots if shared else 0
    counts = _counts(splits, shots, held_back, imbalance, stream)
    if split_protocol == "coop":
        train = _draw_train(splits.train, counts, imbalance, stream, repeat=False)
        val = _draw(splits.val, val_shots, stream, repeat=False)
    elif shared:
        train, val = _draw_shared(splits, counts, val_shots, stream)
    else:
        val = _draw(splits.val, val_shots, stream)
        train = _draw_train(splits.train, counts, imbalance, stream)
    return FewShot(train, val, splits.dataset, shots, seed, split_protocol, imbalance)


def _check_classes(splits: Splits, shots: int) -> None:
    present = {example.label for example in splits.train}
    for label, name in enumerate(splits.class_names):
        if label not in present:
            raise InputError(
                f"{splits.file or splits.dataset}: class {label} ({name!r}) has no train image, so "
                f"shots={shots} cannot be drawn. Add an image, or leave the class out."
            )


def _counts(
    splits: Splits, shots: int, held_back: int, imbalance: float | None, stream: random.Random
) -> list[int]:
    """Return the number of train images of each class, by label."""
    classes = len(splits.class_names)
    if imbalance is None:
        return [shots] * classes
    counts = Counter(label for _, label in splits.train)
    available = [max(1, counts[label] - held_back) for label in range(classes)]
    return class_counts(available, shots * classes, imbalance, stream)


def _draw(
    examples: Iterable[Example], shots: int, stream: random.Random, *, repeat: bool = True
) -> list[Example]:
    drawn: list[Example] = []
    for group in _by_class(examples):
        if len(group) >= shots:
            drawn += stream.sample(group, shots)
        else:
            drawn += stream.choices(group, k=shots) if repeat else group
    return drawn


def _draw_train(
    examples: Iterable[Example],
    counts: Sequence[int],
    imbalance: float | None,
    stream: random.Random,
    *,
    repeat: bool = True,
) -> list[Example]:
    if imbalance is None:
        return _draw(examples, counts[0], stream, repeat=repeat)
    drawn = (draw_count(group, counts[group[0].label], stream) for group in _by_class(examples))
    return [example for group in drawn for example in group]


def _draw_shared(
    splits: Splits, counts: Sequence[int], val_shots: int, stream: random.Random
) -> tuple[list[Example], list[Example]]:
    train, val = [], []
    for group in _by_class(splits.train):
        shots = counts[group[0].label]
        if len(group) < shots + val_shots:
            # A draw with replacement could put one image into both lists.
            raise InputError(
                f"shots={shots}: class {splits.class_names[group[0].label]!r} has {len(group)} "
                f"train images, but split_protocol=clip_lora needs {shots} to train and "
                f"{val_shots} to validate. Use fewer shots, or split_protocol=coop."
            )
        drawn = stream.sample(group, shots + val_shots)
        train += drawn[:shots]
        val += drawn[shots:]
    return train, val


def _by_class(examples: Iterable[Example]) -> list[list[Example]]:
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    return list(groups.values())
