"""The eleven benchmark cards agree with the real split files and with known facts."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from so_clip.data.cards.card import DatasetCard, load_card
from so_clip.prepare.sources import IMAGES, SPLIT, read_sources
from so_clip.system.paths import CARDS_DIR

CARDS = (
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc",
    "food101",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
)
# The datasets with their published split file in the shared material.
SPLIT_AT_HAND = (
    "caltech101",
    "dtd",
    "eurosat",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "ucf101",
)
SPLIT_PARTS = ("train", "val", "test")

# Folder and image folder of CoOp's DATASETS.md.
LAYOUT = {
    "caltech101": ("caltech-101", "101_ObjectCategories"),
    "dtd": ("dtd", "images"),
    "eurosat": ("eurosat", "2750"),
    "fgvc": ("fgvc_aircraft", "images"),
    "food101": ("food-101", "images"),
    "imagenet": ("imagenet", "images"),
    "oxford_flowers": ("oxford_flowers", "jpg"),
    "oxford_pets": ("oxford_pets", "images"),
    "stanford_cars": ("stanford_cars", ""),
    "sun397": ("sun397", "SUN397"),
    "ucf101": ("ucf101", "UCF-101-midframes"),
}
# Classes, then images in train, val and test, of the splits that CoOp published.
SIZES = {
    "caltech101": (100, 4128, 1649, 2465),
    "dtd": (47, 2820, 1128, 1692),
    "eurosat": (10, 13500, 5400, 8100),
    "fgvc": (100, 3334, 3333, 3333),
    "food101": (101, 50500, 20200, 30300),
    "imagenet": (1000, 1281167, 0, 50000),
    "oxford_flowers": (102, 4093, 1633, 2463),
    "oxford_pets": (37, 2944, 736, 3669),
    "stanford_cars": (196, 6509, 1635, 8041),
    "sun397": (397, 15880, 3970, 19850),
    "ucf101": (101, 7639, 1898, 3783),
}
SPECIFIC = {
    "caltech101": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "fgvc": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.",
    "imagenet": "a photo of a {}.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "sun397": "a photo of a {}.",
    "ucf101": "a photo of a person doing {}.",
}
# Templates that CLIP's authors published for each (openai/CLIP, data/prompts.md; ImageNet's in a
# notebook beside it).
ENSEMBLE = {
    "caltech101": 34,
    "dtd": 8,
    "eurosat": 3,
    "fgvc": 2,
    "food101": 1,
    "imagenet": 7,
    "oxford_flowers": 1,
    "oxford_pets": 1,
    "stanford_cars": 8,
    "sun397": 2,
    "ucf101": 48,
}
# Names at labels spread over the lists that come with no split file, so that a shift shows.
KNOWN_NAMES = {
    "fgvc": {0: "707-320", 20: "777-300", 21: "A300B4", 72: "F-16A/B", 73: "F/A-18", 99: "Yak-42"},
    "food101": {0: "apple_pie", 16: "cheese_plate", 17: "cheesecake", 100: "waffles"},
    "imagenet": {
        0: "tench",
        134: "crane bird",
        517: "construction crane",
        639: "one-piece bathing suit",
        999: "toilet paper",
    },
    "sun397": {
        0: "abbey",
        8: "outdoor apartment_building",
        9: "indoor apse",
        52: "boardwalk",
        53: "boat_deck",
        396: "youth_hostel",
    },
}


def card_text(name: str) -> str:
    return (CARDS_DIR / f"{name}.yaml").read_text(encoding="utf-8")


def read_split(card: DatasetCard, shared: Path) -> tuple[bytes, dict[str, list[Any]]]:
    assert card.split_file is not None
    content = (shared / "data" / "splits" / card.split_file).read_bytes()
    return content, json.loads(content)


@pytest.mark.parametrize("name", CARDS)
def test_card_has_every_fact(name: str) -> None:
    content = yaml.safe_load(card_text(name))
    for key in ("title", "licence", "homepage", "citation", "sources", "class_names"):
        assert content[key], f"{name}: {key}"
    assert urlparse(content["homepage"]).scheme == "https"
    assert any(str(year) in content["citation"] for year in range(2004, 2020))


@pytest.mark.parametrize("name", CARDS)
def test_card_follows_the_published_layout(name: str) -> None:
    card = load_card(name)
    assert (card.folder, card.image_dir) == LAYOUT[name]
    assert (card.split_file is None) == (name in ("imagenet", "fgvc"))


@pytest.mark.parametrize("name", CARDS)
def test_sizes_are_those_of_the_published_splits(name: str) -> None:
    card = load_card(name)
    assert tuple(card.sizes[key] for key in ("classes", *SPLIT_PARTS)) == SIZES[name]
    assert card.sizes["classes"] == len(card.class_names)


@pytest.mark.parametrize("name", CARDS)
def test_templates(name: str) -> None:
    card = load_card(name)
    assert card.templates == {"plain": "a photo of a {}.", "specific": SPECIFIC[name]}
    assert len(card.template_ensemble) == len(set(card.template_ensemble)) == ENSEMBLE[name]
    for template in (*card.templates.values(), *card.template_ensemble):
        assert template.count("{}") == 1, template


@pytest.mark.parametrize("name", CARDS)
def test_class_names_are_clean_text(name: str) -> None:
    for class_name in load_card(name).class_names:
        assert class_name == " ".join(class_name.split()), repr(class_name)
        assert "{" not in class_name, class_name


@pytest.mark.parametrize("name", CARDS)
def test_no_class_name_occurs_twice_but_for_two_of_imagenet(name: str) -> None:
    counts = Counter(load_card(name).class_names)
    twice = {class_name: count for class_name, count in counts.items() if count > 1}
    assert twice == ({"missile": 2, "sunglasses": 2} if name == "imagenet" else {})


@pytest.mark.parametrize("name", sorted(KNOWN_NAMES))
def test_known_names_stand_at_their_labels(name: str) -> None:
    names = load_card(name).class_names
    assert {label: names[label] for label in KNOWN_NAMES[name]} == KNOWN_NAMES[name]


def test_lists_that_follow_sorted_folders_are_sorted() -> None:
    assert list(load_card("food101").class_names) == sorted(load_card("food101").class_names)
    assert list(load_card("fgvc").class_names) == sorted(load_card("fgvc").class_names)
    folders = load_card("imagenet").class_folders
    assert list(folders) == sorted(folders)


def test_imagenet_names_every_class_folder() -> None:
    card = load_card("imagenet")
    assert len(set(card.class_folders)) == 1000
    assert all(len(f) == 9 and f[0] == "n" and f[1:].isdigit() for f in card.class_folders)
    named = dict(zip(card.class_folders, card.class_names, strict=True))
    assert named["n01440764"] == "tench"
    assert named["n02012849"] == "crane bird"
    assert named["n03126707"] == "construction crane"
    assert named["n03773504"] == named["n04008634"] == "missile"
    assert named["n04355933"] == named["n04356056"] == "sunglasses"
    assert named["n15075141"] == "toilet paper"


def test_imagenet_names_are_the_ones_published_with_clip() -> None:
    from open_clip import zero_shot_metadata

    assert list(load_card("imagenet").class_names) == list(zero_shot_metadata.IMAGENET_CLASSNAMES)
    seven = [template("{}") for template in zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES]
    assert list(load_card("imagenet").template_ensemble) == seven


def test_only_imagenet_lists_class_folders() -> None:
    assert [name for name in CARDS if load_card(name).class_folders] == ["imagenet"]


@pytest.mark.parametrize("name", SPLIT_AT_HAND)
def test_card_agrees_with_the_real_split_file(name: str, shared: Path) -> None:
    card = load_card(name)
    content, split = read_split(card, shared)
    assert card.split_sha256 == hashlib.sha256(content).hexdigest()
    assert {part: len(split[part]) for part in SPLIT_PARTS} == {
        part: card.sizes[part] for part in SPLIT_PARTS
    }
    pairs = {(label, text) for part in SPLIT_PARTS for _, label, text in split[part]}
    assert sorted(pairs) == list(enumerate(card.class_names))


def test_split_hashes_are_given_exactly_where_the_file_was_seen() -> None:
    given = [name for name in CARDS if load_card(name).split_sha256 is not None]
    assert tuple(given) == SPLIT_AT_HAND


def test_eurosat_paths_exist_below_the_image_folder(shared: Path) -> None:
    card = load_card("eurosat")
    root = shared / "data" / card.folder
    assert card.split_file is not None
    split = json.loads((root / card.split_file).read_bytes())
    first = split["test"][0][0]
    assert (root / card.image_dir / first).is_file()


@pytest.mark.parametrize("name", CARDS)
def test_sources_can_be_read_and_tell_files_apart(name: str) -> None:
    card = load_card(name)
    sources = [source for holds in (IMAGES, SPLIT) for source in read_sources(card, holds)]
    assert bool(sources) == bool(card.sources)
    for source in sources:
        # In a folder of archives that a user has, each has a name of its own.
        names = [file.name for file in source.files]
        assert len(set(names)) == len(names)
    if card.split_file is not None:
        for source in read_sources(card, SPLIT):
            assert [(file.name, file.sha256) for file in source.files] == [
                (card.split_file, card.split_sha256)
            ]


@pytest.mark.parametrize("name", CARDS)
def test_card_text_is_plain_ascii_without_tabs(name: str) -> None:
    text = card_text(name)
    assert text.isascii()
    assert "\t" not in text
    assert text.endswith("\n")
