"""ImageNet's folders, Aircraft's lists and the embedded digits."""

import hashlib
import shutil

import numpy as np
import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.digits import load_digits
from so_clip.data.examples import Example
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError

WNIDS = ("n01", "n02", "n10")


@pytest.fixture
def imagenet(tmp_path, make_card):
    """A card and its folder, with files and folders made in no particular order."""
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n10", "n01", "n02"):
            folder = tmp_path / "imagenet" / "images" / split / wnid
            folder.mkdir(parents=True)
            for index in reversed(range(count)):
                (folder / f"{wnid}_{index}.JPEG").touch()
    card = make_card(layout="imagenet", folder="imagenet", split_file=None, class_folders=WNIDS)
    return card, tmp_path


def test_imagenet_folders_and_files_are_sorted(imagenet):
    card, root = imagenet
    splits = load_splits(card, root)
    assert splits.train == [
        Example(f"train/{wnid}/{wnid}_{index}.JPEG", label)
        for label, wnid in enumerate(WNIDS)
        for index in range(3)
    ]
    assert [e.path for e in splits.test][:3] == [
        "val/n01/n01_0.JPEG", "val/n01/n01_1.JPEG", "val/n02/n02_0.JPEG",
    ]  # fmt: skip
    assert (splits.val, splits.val_from_train) == ([], True)
    assert splits.class_names == ["ant", "bee", "cat"]
    listing = "\n".join(example.path for example in splits.train + splits.test)
    assert splits.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_imagenet_lists_only_images(imagenet):
    card, root = imagenet
    before = load_splits(card, root)
    train = root / "imagenet" / "images" / "train"
    (train / ".cache").mkdir()
    (train / "readme.txt").touch()
    (train / "n01" / "._n01_0.JPEG").touch()
    (train / "n01" / "list.txt").touch()
    assert load_splits(card, root) == before


def test_imagenet_without_class_folders_in_the_card(imagenet, make_card):
    _, root = imagenet
    card = make_card(layout="imagenet", folder="imagenet", split_file=None)
    assert {e.path.split("/")[1]: e.label for e in load_splits(card, root).train} == {
        "n01": 0, "n02": 1, "n10": 2,
    }  # fmt: skip


def test_missing_extra_and_empty_class_folders_of_imagenet_are_refused(imagenet):
    card, root = imagenet
    train = root / "imagenet" / "images" / "train"
    (train / "n02").rename(train / "n03")
    with pytest.raises(InputError, match=r"images/train: 3 class .*missing: n02; not a class: n03"):
        load_splits(card, root)
    (train / "n03").rename(train / "n02")
    for file in (train / "n02").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"train/n02: holds no images.*DATASETS\.md"):
        load_splits(card, root)


def test_imagenet_missing_folder(make_card, tmp_path):
    card = make_card(layout="imagenet", folder="imagenet", split_file=None)
    with pytest.raises(InputError, match=r"imagenet/images/train: .*cannot be listed: No such"):
        load_splits(card, tmp_path)


@pytest.fixture(params=["wordnet_folders", "numbered_folders"])
def relative(request, tmp_path, make_card):
    """A card of test images of another dataset's classes 3, 5 and 10, and its folder."""
    labels = (3, 5, 10)
    names = WNIDS if request.param == "wordnet_folders" else tuple(map(str, labels))
    for name in reversed(names):
        folder = tmp_path / "kin" / "test" / name
        folder.mkdir(parents=True)
        for index in (1, 0):
            (folder / f"{index}.jpg").touch()
    (tmp_path / "kin" / "test" / "README.txt").touch()
    card = make_card(
        layout=request.param,
        folder="kin",
        image_dir="test",
        split_file=None,
        class_folders=WNIDS,
        classes_of="small",
        parent_labels=labels,
    )
    return card, tmp_path, names


def test_class_folders_of_a_relative_are_its_test_images(relative):
    card, root, names = relative
    splits = load_splits(card, root)
    assert (splits.train, splits.val) == ([], [])
    assert splits.test == [
        Example(f"{name}/{index}.jpg", label)
        for label, name in enumerate(names)
        for index in range(2)
    ]
    assert splits.class_names == ["ant", "bee", "cat"]
    assert splits.parent_labels == (3, 5, 10)
    assert splits.file == root / "kin"
    listing = "\n".join(example.path for example in splits.test)
    assert splits.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_classes_without_a_folder_are_left_out(relative):
    card, root, names = relative
    shutil.rmtree(root / "kin" / "test" / names[1])
    splits = load_splits(card, root)
    assert [label for _, label in splits.test] == [0, 0, 1, 1]
    assert (splits.class_names, splits.parent_labels) == (["ant", "cat"], (3, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("strange", r"kin/test: n99 is not a class of Small set.*DATASETS\.md"),
        ("empty", r"kin/test/\w+: holds no images"),
        ("none", r"kin/test: holds no class folders"),
        ("nowhere", r"kin/test: .*cannot be listed: No such"),
    ],
)
def test_bad_class_folders_of_a_relative(change, message, relative):
    card, root, names = relative
    folder = root / "kin" / "test"
    if change == "strange":
        (folder / "n99").mkdir()
    elif change == "empty":
        for file in (folder / names[0]).iterdir():
            file.unlink()
    else:
        shutil.rmtree(folder)
        if change == "none":
            folder.mkdir()
    with pytest.raises(InputError, match=message):
        load_splits(card, root)


@pytest.fixture
def aircraft(tmp_path, make_card):
    folder = tmp_path / "fgvc_aircraft"
    folder.mkdir()
    (folder / "variants.txt").write_text("707-320\nF/A-18\nCessna 172\n")
    for split, lines in (
        ("train", ["0000002 Cessna 172", "0000001 707-320"]),
        ("val", ["0000003 F/A-18", ""]),
        ("test", ["0000004 707-320"]),
    ):
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    card = make_card(layout="fgvc_aircraft", folder="fgvc_aircraft", split_file=None)
    return card, tmp_path, folder


def test_aircraft_lists_are_read_in_line_order(aircraft):
    card, root, folder = aircraft
    splits = load_splits(card, root)
    assert splits.train == [Example("0000002.jpg", 2), Example("0000001.jpg", 0)]
    assert splits.val == [Example("0000003.jpg", 1)]
    assert splits.test == [Example("0000004.jpg", 0)]
    assert splits.class_names == ["707-320", "F/A-18", "Cessna 172"]
    assert not splits.val_from_train
    names = ("variants", "images_variant_train", "images_variant_val", "images_variant_test")
    together = b"".join((folder / f"{name}.txt").read_bytes() for name in names)
    assert splits.sha256 == hashlib.sha256(together).hexdigest()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images_variant_val.txt", "0000003 F/A-19\n", r"line 1: 'F/A-19' is not in variants\.txt"),
        ("images_variant_val.txt", "0000003\n", r"line 1: '' is not in variants\.txt"),
        (
            "images_variant_val.txt",
            "../x F/A-18\n",
            r"line 1: '\.\./x' is not the name of an image",
        ),
        ("images_variant_val.txt", "a/x F/A-18\n", r"'a/x' is not the name of an image"),
        (
            "images_variant_val.txt",
            "\n\n0000002 F/A-18\n",
            r"line 3: .*images_variant_train\.txt l",
        ),
        ("images_variant_test.txt", "", "the list is empty"),
        ("images_variant_test.txt", None, "cannot be read: No such file"),
        ("variants.txt", "a\na\n", "a variant is listed twice"),
        ("variants.txt", "a\xff", "cannot be read: "),
    ],
)
def test_bad_aircraft_lists_are_refused(file, text, message, aircraft):
    card, root, folder = aircraft
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        load_splits(card, root)
    assert str(caught.value).startswith(str(folder / file))
    assert "DATASETS.md" in str(caught.value)


def test_digits_need_no_data_root_and_their_lists_are_disjoint():
    card, digits = load_card("digits"), load_digits()
    splits = load_splits(card, None)
    sizes = {"classes": 10, "train": len(splits.train), "val": len(splits.val)}
    assert card.sizes == sizes | {"test": len(splits.test)}
    examples = splits.train + splits.val + splits.test
    assert len({example.path for example in examples}) == len(examples) == len(digits.images_NHW)
    for path, label in examples:
        assert digits.labels_N[int(path[len("digit_") : -len(".png")])] == label
    assert np.unique(digits.labels_N).tolist() == list(range(10))
    assert splits.class_names[:2] == ["zero", "one"]
