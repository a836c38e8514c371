"""A card that a user writes: sizes and names are checked, alone and against the split file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from so_clip.data.cards.card import load_card
from so_clip.data.examples import SPLITS
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from tests.helpers.made_datasets import write_split_dataset

NAMES = ("red thing", "blue thing")
# The example of docs/how_to/own_card.md.
CARD: dict[str, Any] = {
    "name": "mine",
    "title": "My images",
    "layout": "split_file",
    "folder": "mine",
    "image_dir": "images",
    "split_file": "split.json",
    "sizes": {"classes": 2, "train": 12, "val": 8, "test": 6},
    "templates": {"plain": "a photo of a {}.", "specific": "a photo of a {}."},
    "licence": "mine",
    "homepage": "none",
    "citation": "none",
    "class_names": list(NAMES),
}


def read(folder: Path, **changes: Any) -> Any:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(CARD | changes), encoding="utf-8")
    return load_card("mine", folder)


def sizes(**changes: Any) -> dict[str, Any]:
    return {"sizes": {**CARD["sizes"], **changes}}


BAD = {
    "below 0": (sizes(val=-1), "sizes.val: must be a whole number, 0 to a billion, not -1"),
    "half": (sizes(test=2.5), "sizes.test: must be a whole number"),
    "yes": (sizes(test=True), "sizes.test: must be a whole number, 0 to a billion, not True"),
    "text": (sizes(train="12"), "sizes.train: must be a whole number"),
    "null": (sizes(train=None), "sizes.train: must be a whole number"),
    "list": (sizes(classes=[2]), "sizes.classes: must be a whole number"),
    "beyond measure": (sizes(test=10**400), "sizes.test: must be a whole number, 0 to a billion"),
    "class count": (sizes(classes=3), "sizes.classes: is 3, but class_names holds 2 names"),
    "no train": (sizes(train=0), "sizes.train: is 0, too few: each of 2 classes needs an image"),
    "one train": (sizes(train=1), "sizes.train: is 1, too few"),
    "no test": (sizes(test=0), "sizes.test: is 0, so that there is nothing to test"),
    "no names": ({"class_names": []}, "class_names: must hold something, not []"),
    "number": ({"class_names": ["ant", 3]}, "class_names[1]: must be text, not 3. Put it in quo"),
    "twice": ({"class_names": ["ant", "ant"]}, "class_names[1]: 'ant' makes the same prompt as cl"),
    "case": ({"class_names": ["big_ant", "Big ant"]}, "class_names[1]: 'Big ant' makes the same"),
    "break": ({"class_names": ["an\nt", "bee"]}, "class_names[0]: must be one line"),
    "bell": ({"class_names": ["ant", "b\x07"]}, "class_names[1]: must be one line"),
    "end": ({"class_names": ["ant ", "bee"]}, "class_names[0]: must be one line, with single blan"),
    "gap": ({"class_names": ["an  t", "bee"]}, "class_names[0]: must be one line, with single bl"),
    "no pixels": ({"image_pixels": 0}, "image_pixels: must be a whole number above 0, not 0"),
    "pixel sides": ({"image_pixels": [8, 8]}, "image_pixels: must be a whole number above 0"),
    "package": ({"package": {"module": "a", "install": "a"}}, "package: goes with layout: package"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_values_name_file_key_and_value(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")


PACKAGE = {
    "layout": "package_folders",
    "class_folders": ["red", "blue"],
    "split_sha256": "0" * 64,
    "package": {"module": "images_of_mine", "install": "images-of-mine==1.0"},
}
BAD_PACKAGES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"package": None}, "package: goes with layout: package_folders, and only with it"),
    "text": ({"package": "a"}, "package: must be a mapping"),
    "half": ({"package": {"module": "a"}}, "package.install: is missing"),
    "path": ({"package": {"module": "a.b", "install": "a"}}, "package.module: must be the name"),
    "flag": ({"package": {"module": "a", "install": "-r x"}}, "package.install: must be the name"),
    "number": ({"package": {"module": "a", "install": 1}}, "package.install: must be the name"),
    "no folders": ({"class_folders": None}, "class_folders: is missing, and layout: package_fol"),
    "no hash": ({"split_sha256": None}, "split_sha256: is missing, and layout: package_folders"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_PACKAGES.values(), ids=BAD_PACKAGES)
def test_bad_packages_name_file_key_and_value(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = {key: value for key, value in CARD.items() if key != "split_file"} | PACKAGE
    given = {key: value for key, value in (whole | changes).items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_card("mine", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")


def test_a_layout_of_only_test_images_has_no_val_images(tmp_path: Path) -> None:
    folders = {"class_folders": ["n01", "n02"]}
    read(tmp_path, **folders)
    kin = {key: CARD[key] for key in ("title", "image_dir", "licence", "homepage", "citation")}
    kin |= {"name": "kin", "layout": "wordnet_folders", "folder": "kin", "classes_of": "mine"}
    text = yaml.safe_dump(kin | sizes(train=0, val=4))
    (tmp_path / "kin.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"kin\.yaml: sizes\.val: must be 0, since the layout"):
        load_card("kin", tmp_path)


def test_names_may_repeat_if_the_classes_have_folders(tmp_path: Path) -> None:
    card = read(tmp_path, class_names=["ant", "ant"], class_folders=["n01", "n02"])
    assert card.class_names == ("ant", "ant")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (sizes(train=13), "holds 12 train images, but sizes.train is 13 in the card. Write"),
        (sizes(val=7), "holds 8 val images, but sizes.val is 7 in the card. Write sizes.val: 8"),
        (sizes(test=600), "holds 6 test images, but sizes.test is 600"),
        (
            {"class_names": ["blue thing", "red thing"]},
            "label 0 is 'red thing' there, but class_names[0] is 'blue thing' in the card",
        ),
        (
            {"class_names": [*NAMES, "grey thing"], **sizes(classes=3)},
            "holds 2 classes, but sizes.classes is 3 in the card",
        ),
    ],
)
def test_a_card_agrees_with_the_split_file_beside_it(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_split_dataset(tmp_path, "mine", "images", "split.json", NAMES)
    splits = load_splits(read(tmp_path), tmp_path)
    assert splits.class_names == list(NAMES)
    with pytest.raises(InputError) as caught:
        load_splits(read(tmp_path, **changes), tmp_path)
    assert message in str(caught.value)
    assert "datasets/mine.yaml" in str(caught.value)
    assert str(tmp_path / "mine" / "split.json") in str(caught.value)


def test_another_split_file_and_a_published_one_may_hold_fewer_images(tmp_path: Path) -> None:
    content = write_split_dataset(tmp_path, "mine", "images", "split.json", NAMES)
    fewer = {split: content[split][:-1] for split in SPLITS}
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    card = read(tmp_path)
    assert len(load_splits(card, tmp_path, tmp_path / "fewer.json").train) == 11
    (tmp_path / "mine" / "split.json").write_text(json.dumps(fewer))
    with pytest.raises(InputError, match="holds 11 train images"):
        load_splits(card, tmp_path)
    source = {"kind": "archive", "url": "https://example.org/a.zip"}
    for published in ({"sources": [source]}, {"split_sha256": "0" * 64}):
        assert len(load_splits(read(tmp_path, **published), tmp_path).train) == 11
