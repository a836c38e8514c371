"""Class folders, with and without splits, and other files beside the images."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from so_clip.data.user.dataset import UserData, read_user_data
from so_clip.data.user.folder import list_folder
from so_clip.errors import InputError

CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def touch(root: Path, *paths: str) -> Path:
    """Make files that listings take for images: they open none."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def listed(root: Path, **options: object) -> set[tuple[str, str, str | None]]:
    return {tuple(image) for image in list_folder(root, **options).images}  # type: ignore[arg-type]


def numbered(folder: str, count: int) -> Iterable[str]:
    return (f"{folder}/{index}.jpg" for index in range(count))


def test_folders_are_classes_and_hold_their_images_at_any_depth(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "ant/deep/er/b.PNG", "bee/c.JPEG", "bee/d.WebP", "bee/e.gif")
    assert listed(tmp_path) == {
        ("ant/a.jpg", "ant", None),
        ("ant/deep/er/b.PNG", "ant", None),
        ("bee/c.JPEG", "bee", None),
        ("bee/d.WebP", "bee", None),
        ("bee/e.gif", "bee", None),
    }


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", None])
def test_splits_are_recognized_by_their_names(val: str | None, tmp_path: Path):
    touch(tmp_path, "train/ant/a.jpg", "train/bee/b.jpg", "TEST/ant/c.jpg")
    if val:
        touch(tmp_path, f"{val}/bee/d.jpg")
    found = {(path, key, split) for path, key, split in listed(tmp_path)}
    expected = {
        ("train/ant/a.jpg", "ant", "train"),
        ("train/bee/b.jpg", "bee", "train"),
        ("TEST/ant/c.jpg", "ant", "test"),
    }
    assert found == expected | ({(f"{val}/bee/d.jpg", "bee", "val")} if val else set())


def test_a_class_may_be_called_train(tmp_path: Path):
    touch(tmp_path, "train/a.jpg", "tram/b.jpg")
    assert {image.key for image in list_folder(tmp_path).images} == {"train", "tram"}
    touch(tmp_path, "test/c.jpg")
    with pytest.raises(InputError, match=r"test, train are splits, but tram is not.*split=drawn"):
        list_folder(tmp_path)
    assert {image.key for image in list_folder(tmp_path, "drawn").images} >= {"train", "test"}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "val"), r"no test/\. .*dataset\.train_folder=train dataset\.test_folder=val\."),
        (("Train", "dev"), r"no test/\. .*dataset\.train_folder=Train dataset\.test_folder=dev\."),
        (("train",), r"there is train, but no other split\. .* add dataset\.folder=.*/train\."),
        (("train", "test", "val", "valid"), r"val and valid are both val\. Merge them"),
        (("train", "test", "holdout"), r"holdout and test are both test\. Merge them"),
    ],
)
def test_half_a_split_is_refused(folders: tuple[str, ...], message: str, tmp_path: Path):
    touch(tmp_path, *(f"{folder}/ant/a.jpg" for folder in folders))
    with pytest.raises(InputError, match=message):
        list_folder(tmp_path)


def test_without_train_folders_are_classes_unless_the_option_says_splits(tmp_path: Path):
    touch(tmp_path, "val/a.jpg", "test/b.jpg")
    assert len(list_folder(tmp_path).keys) == 2
    with pytest.raises(InputError, match=r"there is test and val, but no train/"):
        list_folder(tmp_path, "folders")


def test_files_that_are_not_images_are_counted(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "ant/.DS_Store", "ant/._a.jpg", "ant/Thumbs.db", "__MACOSX/x.jpg")
    touch(tmp_path, ".git/y.jpg", "bee/b.jpg", "bee/n.txt", "bee/m.TXT", "bee/p.psd", "bee/LICENSE")
    touch(tmp_path, "readme.md", "lost.png")
    found = list_folder(tmp_path)
    assert {image.path for image in found.images} == {"ant/a.jpg", "bee/b.jpg"}
    assert found.keys == {"ant", "bee"}
    place = f"skipped in {tmp_path}"
    assert found.notes == [
        f"files without the suffix of an image, {place}: "
        ".txt (2), .md (1), .psd (1), no suffix (1)",
        f"hidden files and files of the system, {place}: 5",
        f"images outside the folders of classes, {place}: 1",
    ]


def test_a_folder_without_class_folders_is_refused_with_a_way_out(tmp_path: Path):
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"holds 2 images, but no folder of a class"):
        list_folder(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no folder of a class\. Make one folder per class"):
        list_folder(tmp_path / "none")


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path):
    touch(tmp_path, f"train/{CAFE['NFC']}/a.jpg", "train/bar/b.jpg", f"test/{CAFE['NFD']}/c.jpg")
    found = list_folder(tmp_path)
    assert found.keys == {CAFE["NFC"], "bar"}
    paths = {image.path for image in found.images}
    assert f"test/{CAFE['NFD']}/c.jpg" in paths  # as it is on the disk
    touch(tmp_path, f"train/{CAFE['NFD']}/d.jpg")
    with pytest.raises(InputError, match="two folders have the name 'café', in different"):
        list_folder(tmp_path)


def test_file_names_that_no_list_can_hold_are_refused(tmp_path: Path):
    touch(tmp_path, "ant/a\\b.jpg")
    with pytest.raises(InputError, match=r"it holds a backslash.*Rename it"):
        list_folder(tmp_path)
    (tmp_path / "ant" / "a\\b.jpg").unlink()
    with open(os.fsencode(tmp_path) + b"/ant/\xff.jpg", "wb"):  # noqa: PTH123
        pass
    with pytest.raises(InputError, match=r"it is not valid Unicode\. Rename it"):
        list_folder(tmp_path)


def test_links_inside_are_followed_and_links_outside_refused(tmp_path: Path):
    root = touch(tmp_path / "mine", "ant/a.jpg", "bee/b.jpg", ".kept/b.jpg", ".kept/c.jpg")
    touch(tmp_path, "elsewhere/d.jpg")
    (root / "ant" / "more").symlink_to(root / ".kept")
    (root / "ant" / "gone.jpg").symlink_to(root / "nothing")
    found = list_folder(root)
    assert {image.path for image in found.images if image.key == "ant"} == {
        *("ant/a.jpg", "ant/more/b.jpg", "ant/more/c.jpg")
    }
    assert f"broken links, skipped in {root}: 1" in found.notes
    for name, target in (("cat", "elsewhere"), ("bee/e.jpg", "elsewhere/d.jpg")):
        (root / name).symlink_to(tmp_path / target)
        with pytest.raises(InputError, match=r"outside the dataset.*dataset\.follow_links=true"):
            list_folder(root)
        followed = {image.path for image in list_folder(root, follow_links=True).images}
        added = "cat/d.jpg" if name == "cat" else name
        assert followed == {image.path for image in found.images} | {added}
        (root / name).unlink()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/x.jpg", "test/ant/b.jpg"),
        ("test/bee/x.jpg", "test/ant/b.jpg"),
        ("train/cat", "test/bee"),
    ],
)
def test_links_that_put_an_image_into_two_splits_or_classes_are_refused(
    link: str, target: str, tmp_path: Path
):
    touch(tmp_path, "train/ant/a.jpg", "train/bee/c.jpg", "test/ant/b.jpg", "test/bee/d.jpg")
    (tmp_path / "train" / "ant" / "again.jpg").symlink_to(tmp_path / "train" / "ant" / "a.jpg")
    assert len(list_folder(tmp_path).images) == 5  # twice in one class and split is no leak
    (tmp_path / link).symlink_to(tmp_path / target)
    both = sorted((f"{link}/d.jpg", f"{target}/d.jpg") if link == "train/cat" else (link, target))
    with pytest.raises(InputError, match=f"{' and '.join(both)} are links to one file"):
        list_folder(tmp_path)


def test_links_that_repeat_an_image_in_a_class_with_a_drawn_split_are_refused(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "bee/b.jpg")
    (tmp_path / "ant" / "x.jpg").symlink_to(tmp_path / "ant" / "a.jpg")
    with pytest.raises(InputError, match=r"ant/a\.jpg and ant/x\.jpg are links to one file"):
        list_folder(tmp_path)


def test_links_in_a_circle_are_refused(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "bee/b.jpg")
    (tmp_path / "bee" / "again").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"again: is a link to a folder around it"):
        list_folder(tmp_path)


def test_links_in_a_circle_through_two_folders_are_refused(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "bee/b.jpg")
    (tmp_path / "ant" / "x").symlink_to(tmp_path / "bee")
    (tmp_path / "bee" / "y").symlink_to(tmp_path / "ant")
    with pytest.raises(InputError, match=r"contains itself through links\. Remove one"):
        list_folder(tmp_path)


def test_a_pipe_is_not_an_image(tmp_path: Path):
    touch(tmp_path, "ant/a.jpg", "bee/b.jpg")
    os.mkfifo(tmp_path / "bee" / "c.jpg")
    assert "not plain files (1)" in list_folder(tmp_path).notes[0]


@pytest.mark.slow
def test_thousands_of_classes_are_listed_and_split(tmp_path: Path):
    for number in range(2_000):
        folder = tmp_path / f"c{number:05}"
        folder.mkdir()
        for name in ("a.jpg", "b.jpg"):
            (folder / name).touch()
    card, splits, _ = read_user_data(UserData("folder", tmp_path), "many")
    assert card.sizes == {"classes": 2_000, "train": 2_000, "val": 0, "test": 2_000}
    assert set(Counter(label for _, label in splits.train).values()) == {1}
