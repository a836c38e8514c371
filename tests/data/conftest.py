"""Cards and folders that the data tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from so_clip.data.cards.card import DatasetCard


@pytest.fixture(scope="session")
def make_card() -> Callable[..., DatasetCard]:
    """Build a published card of three classes; keyword arguments replace its fields."""

    def make(**changes: Any) -> DatasetCard:
        names = changes.pop("class_names", ("ant", "bee", "cat"))
        values: dict[str, Any] = {
            "name": "small",
            "title": "Small set",
            "layout": "split_file",
            "folder": "small",
            "image_dir": "images",
            "sizes": {"classes": len(names), "train": 6, "val": 3, "test": 3},
            "templates": {"plain": "a photo of a {}.", "specific": "a small photo of {}."},
            "licence": "CC0",
            "homepage": "https://example.org/small",
            "citation": "nobody",
            "class_names": tuple(names),
            "split_file": "split_small.json",
            "sources": ({"kind": "archive", "url": "https://example.org/a.zip"},),
        }
        return DatasetCard(**(values | changes))

    return make


@pytest.fixture(scope="session")
def eurosat_images(shared: Path) -> list[Path]:
    """Forty real EuroSAT images, four per class."""
    folders = sorted((shared / "data" / "eurosat" / "2750").iterdir())
    return [file for folder in folders for file in sorted(folder.iterdir())[:4]]
