"""Datasets in the folders of other code bases are used there; CoOp's folder comes first."""

import json

import pytest
from PIL import Image

from so_clip.data.cards.card import card_names, load_card
from so_clip.data.images import open_images
from so_clip.data.lists.splits import dataset_folder, load_splits

# torchvision.datasets, by their download=True; github.com/KaiyangZhou/CoOp's elsewhere.
TORCHVISION = {
    "caltech101": "caltech101/101_ObjectCategories",
    "dtd": "dtd/dtd/images",
    "eurosat": "eurosat/2750",
    "fgvc": "fgvc-aircraft-2013b/data/images",
    "food101": "food-101/images",
    "oxford_flowers": "flowers-102/jpg",
    "oxford_pets": "oxford-iiit-pet/images",
    "stanford_cars": "stanford_cars",
    "sun397": "SUN397",
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_folders_are_used_in_place(name, tmp_path):
    card = load_card(name)
    there = tmp_path / TORCHVISION[name]
    there.mkdir(parents=True)
    assert dataset_folder(card, tmp_path) / card.image_dir == there
    (tmp_path / card.folder / card.image_dir).mkdir(parents=True, exist_ok=True)
    assert dataset_folder(card, tmp_path) == tmp_path / card.folder


@pytest.mark.parametrize("name", [n for n in card_names() if load_card(n).split_file])
def test_coops_folders_which_tip_adapter_and_promptsrc_share_are_the_cards(name, tmp_path):
    card = load_card(name)
    assert dataset_folder(card, tmp_path) == tmp_path / card.folder


@pytest.mark.parametrize("place", ["flowers-102", "oxford_flowers", "splits", "."])
def test_the_split_file_may_be_in_any_of_its_places(place, tmp_path):
    card = load_card("oxford_flowers")
    images = tmp_path / "flowers-102" / "jpg"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "image_00001.jpg")
    lists = {part: [["image_00001.jpg", 0, "rose"]] for part in ("train", "val", "test")}
    lists["val"], lists["test"] = [], [["image_00002.jpg", 0, "rose"]]
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / str(card.split_file)).write_text(json.dumps(lists))
    splits = load_splits(card, tmp_path)
    assert splits.file == tmp_path / place / str(card.split_file)
    assert open_images(card, tmp_path).read(splits.train[0].path).size == (4, 4)
