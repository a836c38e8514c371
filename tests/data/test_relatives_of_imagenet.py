"""The four datasets that test ImageNet models: their cards agree with known facts."""

from pathlib import Path
from urllib.parse import urlparse

import pytest

from so_clip.data.cards.card import load_card

# Folder, image folder (CoOp's DATASETS.md), classes and test images.
KNOWN = {
    "imagenet_v2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", 1000, 10_000),
    "imagenet_sketch": ("imagenet-sketch", "images", 1000, 50_889),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a", 200, 7_500),
    "imagenet_r": ("imagenet-rendition", "imagenet-r", 200, 30_000),
}


@pytest.mark.parametrize("name", KNOWN)
def test_cards_have_the_published_facts(name):
    card = load_card(name)
    folder, image_dir, classes, images = KNOWN[name]
    assert (card.folder, card.image_dir) == (folder, image_dir)
    assert card.sizes == {"classes": classes, "train": 0, "val": 0, "test": images}
    assert (card.classes_of, card.test_only) == ("imagenet", True)
    assert urlparse(card.homepage).netloc == "github.com"
    expected = "numbered_folders" if name == "imagenet_v2" else "wordnet_folders"
    assert card.layout == expected


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_templates_are_imagenets(name):
    card, imagenet = load_card(name), load_card("imagenet")
    named = dict(zip(imagenet.class_folders, imagenet.class_names, strict=True))
    assert card.class_names == tuple(named[folder] for folder in card.class_folders)
    assert card.template_sets == imagenet.template_sets
    assert list(card.parent_labels) == sorted(card.parent_labels)
    assert [imagenet.class_folders[label] for label in card.parent_labels] == [*card.class_folders]


# The first, second and last classes of both, as timm lists their indices in ImageNet.
def test_a_and_r_have_two_hundred_classes():
    a, r = (load_card(f"imagenet_{name}") for name in "ar")
    assert (a.parent_labels[:3], a.parent_labels[-1]) == ((6, 11, 13), 988)
    assert (r.parent_labels[:3], r.parent_labels[-1]) == ((1, 2, 4), 988)
    assert dict(zip(a.class_folders, a.class_names, strict=True))["n01498041"] == "stingray"
    assert dict(zip(r.class_folders, r.class_names, strict=True))["n01443537"] == "goldfish"


def test_the_classes_equal_the_lists_of_timm():
    info = Path(pytest.importorskip("timm").__file__).parent / "data" / "_info"
    for name in ("imagenet_a", "imagenet_r"):
        listed = (info / f"{name}_synsets.txt").read_text().split()
        assert list(load_card(name).class_folders) == listed
