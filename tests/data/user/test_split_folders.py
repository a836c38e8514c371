"""Folders that are splits, folders that are classes, and folders with two readings."""

import re
import unicodedata
from pathlib import Path

import pytest

from so_clip.data.user.folder import list_folder
from so_clip.data.user.listing import Listing
from so_clip.errors import InputError


def fill(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "0.png").touch()
    return root


def both(*splits: str) -> list[str]:
    return [f"{split}/{name}" for split in splits for name in ("cat", "dog")]


def splits(found: Listing) -> dict[str, str | None]:
    """Return the split of each folder of splits, after a check that cat and dog are the classes."""
    assert found.keys == {"cat", "dog"}
    return {image.path.split("/")[0]: image.split for image in found.images}


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        ({"Training": "train", "Testing": "test"}, ""),
        ({"TRAIN": "train", "VAL": "val", "TEST": "test"}, ""),
        ({"train": "train", "dev": "val", "test": "test"}, "dev is val"),
        ({"train": "train", "holdout": "test"}, "holdout is test"),
        ({"train": "train", "Hold-Out": "test"}, "Hold-Out is test"),
        ({"train": "train", "eval": "test"}, "eval is test"),
        ({"train": "train", "eval": "val", "test": "test"}, "eval is val"),
        ({"seg_train": "train", "seg_test": "test"}, "seg_test is test, seg_train is train"),
        ({"training_set": "train", "test_set": "test"}, "test_set is test, training_set is train"),
        ({"train2017": "train", "val2017": "val", "test2017": "test"}, "train2017 is train"),
        ({"TrainImages": "train", "TestImages": "test"}, "TrainImages is train"),
    ],
    ids=str,
)
def test_usual_words_for_splits_are_known(folders: dict[str, str], note: str, tmp_path: Path):
    found = list_folder(fill(tmp_path, *both(*folders)))
    assert splits(found) == folders
    assert any(note in text and "dataset.split=drawn" in text for text in found.notes) == bool(note)


@pytest.mark.parametrize(
    ("first", "second"), [("fold1", "fold2"), ("val", "test"), ("2019", "2020"), ("oak", "elm")]
)
def test_classes_with_the_same_folders_have_two_readings(first: str, second: str, tmp_path: Path):
    fill(tmp_path, *both(first, second))
    with pytest.raises(InputError) as caught:
        list_folder(tmp_path)
    message = re.sub("[\"']", "", str(caught.value))  # Hydra needs quotes around numbers
    a, b = sorted((first, second), key=lambda name: (name == "test", name))
    assert f"dataset.train_folder={a} dataset.test_folder={b}" in message
    assert "If cat and dog are the classes" in message
    assert "dataset.split=drawn" in message
    chosen = list_folder(tmp_path, split_folders={"train": [a], "val": [], "test": [b]})
    assert splits(chosen) == {a: "train", b: "test"}
    drawn = list_folder(tmp_path, "drawn")
    assert drawn.keys == {first, second}
    assert any("folders inside the folders of classes: 4" in note for note in drawn.notes)


@pytest.mark.parametrize("beside", [["notes"], ["samples"], ["samples", "notes"]], ids="+".join)
def test_folders_beside_them_do_not_hide_the_two_readings(beside: list[str], tmp_path: Path):
    fill(tmp_path, *both("fold1", "fold2"))
    for name in beside:
        (tmp_path / name).mkdir()
    if "samples" in beside:
        (tmp_path / "samples" / "0.png").touch()
    with pytest.raises(InputError, match=r"dataset\.train_folder=fold1.*dataset\.split=drawn"):
        list_folder(tmp_path)


def test_the_same_folders_are_seen_in_either_case(tmp_path: Path):
    fill(tmp_path, "2019/Cat", "2019/Dog", "2020/cat", "2020/dog")
    with pytest.raises(InputError, match="2019 and 2020 hold folders of the same names"):
        list_folder(tmp_path)


@pytest.mark.parametrize("wrapper", ["", "/seg_{}"], ids=["plain", "wrapped"])
def test_a_folder_beside_splits_with_a_common_word_is_named(wrapper: str, tmp_path: Path):
    wrapped = {name: f"seg_{name}{wrapper.format(name)}" for name in ("train", "test", "pred")}
    fill(tmp_path, *both(wrapped["train"], wrapped["test"]), wrapped["pred"])
    with pytest.raises(InputError, match="seg_pred is not") as caught:
        list_folder(tmp_path)
    named = {
        split: re.findall(rf"dataset.{split}_folder=([\w/]+)", str(caught.value))
        for split in ("train", "test")
    }
    assert named == {split: [wrapped[split]] for split in ("train", "test")}
    assert splits(list_folder(tmp_path, split_folders=named)) == {
        "seg_train": "train",
        "seg_test": "test",
    }


def test_an_empty_folder_beside_splits_is_skipped(tmp_path: Path):
    fill(tmp_path, *both("train", "test"))
    (tmp_path / "notes").mkdir()
    found = list_folder(tmp_path)
    assert splits(found) == {"train": "train", "test": "test"}
    assert any("skipped: notes" in note for note in found.notes)


def test_the_same_folders_are_seen_in_either_unicode_form(tmp_path: Path):
    names = ("café", "öl")
    for form, fold in (("NFC", "fold1"), ("NFD", "fold2")):
        fill(tmp_path, *(f"{fold}/{unicodedata.normalize(form, name)}" for name in names))
    with pytest.raises(InputError, match="If café and öl are the classes"):
        list_folder(tmp_path)


def test_a_class_is_missing_in_one_split(tmp_path: Path):
    fill(tmp_path, *both("fold1", "fold2"), "fold1/eel")
    with pytest.raises(InputError, match="fold1 and fold2 hold folders of the same names"):
        list_folder(tmp_path)


def test_folders_beside_images_belong_to_the_class(tmp_path: Path):
    fill(tmp_path, "oak", "elm", "oak/front", "oak/back", "elm/front", "elm/back")
    found = list_folder(tmp_path)
    assert found.keys == {"oak", "elm"}
    assert len(found.images) == 6
    assert any("such as elm/back; their images belong" in note for note in found.notes)


def test_one_folder_in_each_class_is_no_second_reading(tmp_path: Path):
    found = list_folder(fill(tmp_path, "oak/images", "elm/images"))
    assert {(image.key, image.split) for image in found.images} == {("oak", None), ("elm", None)}


def test_wrappers_around_the_classes_are_no_classes(tmp_path: Path):
    found = list_folder(fill(tmp_path / "a", *both("seg_train/seg_train", "seg_test/seg_test")))
    assert splits(found) == {"seg_train": "train", "seg_test": "test"}
    fill(tmp_path / "b", *both("A/images", "B/images"))
    with pytest.raises(InputError, match=r"train_folder=A/images dataset\.test_folder=B/images"):
        list_folder(tmp_path / "b")


def test_splits_inside_the_folders_of_classes_are_splits(tmp_path: Path):
    fill(tmp_path, "cat/train", "cat/test", "dog/Train", "dog/test", "dog/val")
    found = list_folder(tmp_path)
    assert {tuple(image) for image in found.images} == {
        ("cat/train/0.png", "cat", "train"),
        ("cat/test/0.png", "cat", "test"),
        ("dog/Train/0.png", "dog", "train"),
        ("dog/test/0.png", "dog", "test"),
        ("dog/val/0.png", "dog", "val"),
    }
    assert "the folders of classes hold splits: " in found.notes[0]


FLAT = {
    "test": (
        (*both("train"), "test"),
        r"test/ holds 1 images, but no folder of a class, so these images have no label, and "
        r"cannot be tested on\. .*images of train/, add dataset\.folder=.*/train\.",
    ),
    "test beside val": (
        (*both("train", "val"), "test"),
        r"to test on val/, add dataset\.train_folder=train dataset\.test_folder=val\.",
    ),
    "one folder in test": (
        (*both("train"), "test/unknown"),
        r"test/ holds unknown, but no folder of a class that is trained, so these images have no",
    ),
    "all": (
        ("train", "test"),
        r"test/ holds 1 images, but no folder of a class, and train/ holds 1 images.*"
        r"CSV file \(dataset=csv\)\. If all are classes, add dataset\.split=drawn",
    ),
    "all in parts": (("train_set", "test_set"), r"test_set/ holds 1 images.*no label"),
}


@pytest.mark.parametrize(("folders", "message"), FLAT.values(), ids=FLAT)
def test_images_without_a_label_are_named(folders: list[str], message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message) as caught:
        list_folder(fill(tmp_path, *folders))
    # The two classes train and test would be a wrong result if train/ holds the classes.
    assert ("split=drawn" in str(caught.value)) == (not any("/" in name for name in folders))


def test_unlabelled_validation_images_are_not_needed(tmp_path: Path):
    found = list_folder(fill(tmp_path, *both("train", "test"), "val"))
    assert splits(found) == {"train": "train", "test": "test"}
    assert any(note.startswith("images outside the folders of classes") for note in found.notes)


def test_several_folders_make_a_split_and_others_are_skipped(tmp_path: Path):
    fill(tmp_path, *both("f1", "f2", "f3", "f4", "f5"))
    chosen = {"train": ["f1", "f2"], "val": ["f4/"], "test": ["f3"]}
    found = list_folder(tmp_path, split_folders=chosen)
    assert splits(found) == {"f1": "train", "f2": "train", "f4": "val", "f3": "test"}
    assert "folders of no split, skipped: f5" in found.notes


@pytest.mark.parametrize(
    ("chosen", "split", "message"),
    [
        ({"train": ["a"]}, "auto", r"dataset\.test_folder is missing"),
        ({"train": ["a"], "test": ["c"]}, "auto", r"test_folder=c: there is no such folder in "),
        ({"train": ["a"], "test": ["../b"]}, "auto", r"test_folder=\.\./b: it climbs out"),
        ({"train": ["a"], "test": ["a/cat"]}, "auto", r"a/cat: its images are in a too"),
        ({"train": ["a"], "test": ["b"]}, "drawn", r"split=drawn: the folders of splits are given"),
        ({}, "folders", r"no folder in it has the name of a split.*train_folder=FOLDER"),
    ],
)
def test_wrong_folders_of_splits_are_refused(
    chosen: dict[str, list[str]], split: str, message: str, tmp_path: Path
):
    with pytest.raises(InputError, match=message):
        list_folder(fill(tmp_path, *both("a", "b")), split, split_folders=chosen)


def test_a_linked_folder_of_a_split_may_not_lead_out(tmp_path: Path):
    root = fill(tmp_path / "mine", *both("a/in"))
    fill(tmp_path / "other", *both("in"))
    (root / "b").mkdir()
    (root / "b" / "in").symlink_to(tmp_path / "other" / "in")
    chosen = {"train": ["a/in"], "test": ["b/in"]}
    with pytest.raises(InputError, match=r"b/in: is a link to .*outside the dataset"):
        list_folder(root, split_folders=chosen)
    assert len(list_folder(root, follow_links=True, split_folders=chosen).images) == 4
