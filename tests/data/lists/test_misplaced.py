"""Runs and draws name a dataset that is in another place than its layout says."""

import shutil
from pathlib import Path

import pytest

from so_clip.data.cards.card import card_names, load_card
from so_clip.data.images import open_images
from so_clip.data.lists.misplaced import find_misplaced
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from tests.helpers.made_datasets import write_eurosat

CARD = load_card("eurosat")
SPLIT_FILE = str(CARD.split_file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_eurosat(tmp_path / "data")
    return tmp_path / "data"


def test_the_folder_of_the_dataset_is_no_data_root(root: Path):
    start = rf"data_root={root}/eurosat is the folder of EuroSAT \(RGB\) itself\. "
    message = rf"{start}Give the folder around it: data_root={root}\."
    # Its split file is found there, as in a folder of split files. Its images are not.
    assert load_splits(CARD, root / "eurosat")
    with pytest.raises(InputError, match=message):
        open_images(CARD, root / "eurosat")
    (root / "eurosat" / SPLIT_FILE).rename(root / "elsewhere.json")
    with pytest.raises(InputError, match=message):
        load_splits(CARD, root / "eurosat")


@pytest.mark.parametrize("name", ["EuroSAT", "EUROSAT", "Euro-SAT", "euro_sat"])
def test_another_spelling_of_the_folder_is_named(name: str, root: Path):
    (root / "eurosat").rename(root / name)
    message = rf"{root / name} is there, but the folder must have the name eurosat\. Rename it: mv "
    with pytest.raises(InputError, match=message):
        load_splits(CARD, root)
    shutil.copy(root / name / SPLIT_FILE, root)
    with pytest.raises(InputError, match=message):
        open_images(CARD, root)
    found = find_misplaced(CARD, root / name)
    assert found is not None
    assert found.move == f"mv {root / name} {root / 'eurosat'}"
    assert found.data_root == root


def test_layouts_without_a_split_file_are_found_too(tmp_path: Path):
    (tmp_path / "ImageNet" / "images" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="the folder must have the name imagenet"):
        load_splits(load_card("imagenet"), tmp_path)


def test_only_the_files_of_a_dataset_make_its_folder(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "photos" / "images").mkdir(parents=True)
    (tmp_path / "DTD").mkdir()
    (tmp_path / SPLIT_FILE).touch()
    for name in card_names():
        assert find_misplaced(load_card(name), tmp_path) is None
        assert find_misplaced(load_card(name), tmp_path / "photos") is None
