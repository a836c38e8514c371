"""The home of a reader of the documentation: photographs and small copies of the datasets."""

import shutil
from pathlib import Path

from tests.helpers.made_datasets import write_class_folders, write_dtd, write_eurosat, write_image
from tests.helpers.made_sentences import files_of, rows, write

TREES = ("apple_tree", "oak", "scots_pine")
# Sampled tasks have five classes or more.
TEXTURES = ("dotted", "fibrous", "grid", "lined", "woven")


def write_home(home: Path) -> Path:
    """Write photos/, photographs/, folds/, two files and data/ with eurosat, dtd, rte, mine."""
    write_class_folders(home / "photos", TREES, images=8)
    write_class_folders(home / "photographs", TREES, images=16)
    for number in (1, 2, 3):
        write_class_folders(home / "folds" / f"fold{number}", TREES)
    for name in ("a", "b"):
        shutil.copy(home / "photos" / "oak" / "0.png", home / f"{name}.jpg")
    write_eurosat(home / "data")
    write_dtd(home / "data", TEXTURES)
    write(home / "data", files_of("parquet", rows(40), rows(8, start=100)))
    for number, name in enumerate("abcd"):
        write_image(home / "data" / "mine" / "images" / f"{name}.png", number)
    return home
