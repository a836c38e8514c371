"""What one's own images are listed as, by folders or by a CSV file, before they are a dataset."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# What people call the three lists; capitals are of no account.
SPLIT_NAMES = {
    "train": "train",
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
}


class Listed(NamedTuple):
    """One image: its `path` as on the disk, its class's `key`, and its split, None to be drawn."""

    path: str
    key: str
    split: str | None


@dataclass
class Listing:
    """One's own images as they were found.

    Attributes:
        images: in any order.
        file: what was read: the CSV file, or the folder.
        keys: of all classes, also of those without an image.
        read_from: files and folders whose change changes the listing.
        notes: what was passed over, a sentence each.
    """

    file: Path
    images: list[Listed] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    read_from: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def composed(text: str) -> str:
    """Return text in Unicode's composed form (NFC): macOS writes é as two characters."""
    return unicodedata.normalize("NFC", text)


def told(counts: "Counter[str]", most: int = 4) -> str:
    """Return counts for people, the highest first: ".txt (12), .heic (3)"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} ({count})" for name, count in ranked[:most]]
    return ", ".join(shown + (["..."] if len(ranked) > most else []))
