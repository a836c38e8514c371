"""Small datasets of noise with the layouts of real ones, for tests of whole runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ANIMALS = ("ant", "bee", "cat", "dog", "eel")


def write_image(path: Path, number: int) -> None:
    """Write an image of noise; the number decides its pixels and its tint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HW = np.random.default_rng(number).normal(128, 20 + number % 37, (32, 32))
    noise = Image.fromarray(pixels_HW.clip(0, 255).astype(np.uint8))
    tint = [(40 * number) % 251, (97 * number) % 251, (11 * number) % 251]
    Image.merge("RGB", [noise.point(lambda value, t=t: (value + t) // 2) for t in tint]).save(path)


def write_split_dataset(
    root: Path, folder: str, images: str, split_file: str, names: Sequence[str] = ANIMALS
) -> dict[str, Any]:
    """Write a dataset with a split file: 6 train, 4 val and 3 test images of each class."""
    split: dict[str, Any] = {"train": [], "val": [], "test": []}
    number = 0
    for part, count in (("train", 6), ("val", 4), ("test", 3)):
        for label, name in enumerate(names):
            for index in range(count):
                number += 1
                path = f"{name}/{part}_{index}.png"
                write_image(root / folder / images / path, number)
                split[part].append([path, label, name])
    (root / folder / split_file).write_text(json.dumps(split))
    return split


def write_eurosat(root: Path, names: Sequence[str] = ANIMALS) -> dict[str, Any]:
    """Write a dataset in EuroSAT's folder; return the content of its split file."""
    return write_split_dataset(root, "eurosat", "2750", "split_zhou_EuroSAT.json", names)


def write_dtd(root: Path, names: Sequence[str] = ("dotted", "fibrous", "grid")) -> dict[str, Any]:
    """Write a dataset in DTD's folder; return the content of its split file."""
    return write_split_dataset(root, "dtd", "images", "split_zhou_DescribableTextures.json", names)


def write_class_folders(folder: Path, names: Sequence[str], images: int = 2) -> None:
    """Write one folder of images per class."""
    for place, name in enumerate(names):
        for index in range(images):
            write_image(folder / name / f"{index}.png", 100 + images * place + index)
