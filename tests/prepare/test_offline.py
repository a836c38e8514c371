"""The user's archives, links to ImageNet, and datasets without a split file."""

import hashlib
import os

import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.lists.splits import load_splits
from tests.helpers.archives import (
    SPLIT_FILE,
    archive,
    below,
    images,
    laid_out,
    picture,
    prepare,
    split_bytes,
    split_source,
    tarred,
    write_card,
    zipped,
)

URL = "http://127.0.0.1:9/never/small.zip"


def _card(root, *sources, **changes):
    split = split_source(f"http://127.0.0.1:9/{SPLIT_FILE}")
    write_card(root.parent / "cards", *(sources or (archive(URL),)), split, **changes)


def _given(root, files, folder=""):
    place = root.parent / "given" / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return root.parent / "given"


@pytest.mark.parametrize("folder", ["", "small"])
@pytest.mark.parametrize("flag", [("--offline-from", "{}"), ("--offline-from={}",)])
def test_the_users_archives_are_used_and_kept(folder, flag, root):
    _card(root)
    given = _given(root, {"small.zip": zipped(images()), SPLIT_FILE: split_bytes()}, folder)
    done = prepare(root, *(item.format(given) for item in flag))
    assert done.code == 0, done.err
    assert laid_out(root) == images()
    assert (given / folder / "small.zip").is_file()
    assert (given / folder / SPLIT_FILE).is_file()


def test_a_missing_archive_is_named_and_not_downloaded(server, root):
    url = server.serve("small.zip", zipped(images()))
    _card(root, archive(url))
    given = _given(root, {SPLIT_FILE: split_bytes()})
    done = prepare(root, "--offline-from", given)
    assert done.code == 1
    assert f"small.zip is not in {given} (published at {url})" in done.err
    assert not server.asked


def test_an_archive_with_another_checksum_is_used_only_if_the_user_names_it(root):
    data = zipped(images())
    _card(root, archive(URL, md5="0" * 32))
    given = _given(root, {"small.zip": data, SPLIT_FILE: split_bytes()})
    done = prepare(root, "--offline-from", given)
    assert done.code == 1
    assert f"has the md5 {hashlib.md5(data).hexdigest()}, expected {'0' * 32}" in done.err
    assert f"--offline-from {given / 'small.zip'}" in done.err
    assert prepare(root, "--offline-from", given / "small.zip").code == 0
    assert laid_out(root) == images()


def test_an_archive_with_any_name_is_used(root):
    _card(root)
    given = _given(root, {"archive (3).zip": zipped(images()), SPLIT_FILE: split_bytes()})
    assert prepare(root, "--offline-from", given / "archive (3).zip").code == 0
    assert laid_out(root) == images()


@pytest.mark.parametrize("inside", ["", "small/photos", "some/where"])
def test_an_unpacked_folder_is_copied(inside, root):
    _card(root)
    given = _given(root, {SPLIT_FILE: split_bytes()})
    for name, data in images().items():
        (given / inside / name).parent.mkdir(parents=True, exist_ok=True)
        (given / inside / name).write_bytes(data)
    before = sorted(given.rglob("*"))
    done = prepare(root, "--offline-from", given)
    assert done.code == 0, done.err
    assert done.err == ""
    assert laid_out(root) == images()
    assert sorted(given.rglob("*")) == before


def test_an_unpacked_folder_that_lacks_images_is_not_used(root):
    _card(root)
    given = _given(root, {SPLIT_FILE: split_bytes()})
    first, *others = images().items()
    for name, data in others:
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_bytes(data)
    done = prepare(root, "--offline-from", given)
    assert done.code == 1
    assert f"{given} is not this dataset unpacked: 1 of {len(others) + 1} images are" in done.err
    assert f"not in it, first {first[0]}" in done.err
    assert not (root / ".prepare").exists()


def test_a_pipe_in_an_unpacked_folder_is_not_read(root):
    _card(root)
    given = _given(root, {SPLIT_FILE: split_bytes()})
    for name in images():
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(given / name)
    done = prepare(root, "--offline-from", given)
    assert done.code != 0
    assert "not a plain file" in done.err


def test_unpacked_class_folders_are_copied(root):
    _aircraft_card(root)
    given = root.parent / "given"
    for name, data in below("fgvc-2013b/data", _aircraft()).items():
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_bytes(data)
    done = prepare(root, "--offline-from", given)
    assert done.out == f"small: completed: 6 images in {root / 'small'}\n", done.err
    assert (given / "fgvc-2013b/data/variants.txt").is_file()


@pytest.mark.parametrize("has_root", [True, False])
def test_a_failed_preparation_leaves_nothing_behind(has_root, root):
    _card(root)
    if has_root:
        root.mkdir()
    before = sorted(root.parent.rglob("*"))
    assert prepare(root).code == 1
    assert sorted(root.parent.rglob("*")) == before


def _aircraft():
    lists = {"variants.txt": b"707\nF/A-18\n"}
    for number, part in enumerate(("train", "val", "test")):
        lists[f"images_variant_{part}.txt"] = f"000{number} 707\n100{number} F/A-18\n".encode()
    pictures = {f"images/{x}00{n}.jpg": picture(10 * x + n) for x in (0, 1) for n in range(3)}
    return lists | pictures


def _aircraft_card(root, **sizes):
    changes = {"layout": "fgvc_aircraft", "split_file": None, "image_dir": "images"}
    changes |= {"class_names": ["707", "F/A-18"]}
    changes["sizes"] = {"classes": 2, "train": 2, "val": 2, "test": 2} | sizes
    write_card(root.parent / "cards", archive(URL), **changes)


def test_aircraft_lists_and_images_are_found_in_one_folder(root):
    _aircraft_card(root)
    made = tarred(below("fgvc-2013b/data", _aircraft()) | {"fgvc-2013b/README.html": b"x"})
    done = prepare(root, "--offline-from", _given(root, {"small.zip": made}))
    assert done.out == f"small: completed: 6 images in {root / 'small'}\n", done.err
    there = {path: (root / "small" / path).read_bytes() for path in _aircraft()}
    assert there == _aircraft()
    assert not (root / "small" / "README.html").exists()


def test_a_number_of_images_that_was_not_published_is_refused(root):
    _aircraft_card(root, test=3)
    given = _given(root, {"small.zip": tarred(below("data", _aircraft()))})
    done = prepare(root, "--offline-from", given)
    assert done.code == 1
    assert "holds 6 images where 7 were published" in done.err
    assert not (root / "small").exists()


def _parent(root):
    folders = ["n01", "n02", "n03"]
    layout = {"layout": "imagenet", "split_file": None, "class_folders": folders}
    sizes = {"classes": 3, "train": 6, "val": 0, "test": 3}
    write_card(root.parent / "cards", name="parent", folder="parent", sizes=sizes, **layout)


@pytest.mark.parametrize(
    ("layout", "names"), [("wordnet_folders", ["n01", "n03"]), ("numbered_folders", ["0", "2"])]
)
def test_test_sets_are_found_by_their_class_folders(layout, names, root):
    _parent(root)
    there = {f"{name}/{index}.jpg": picture(index) for name in names for index in range(2)}
    changes = {"layout": layout, "split_file": None, "classes_of": "parent"}
    changes |= {"class_names": None, "templates": None, "class_folders": ["n01", "n03"]}
    changes["sizes"] = {"classes": 2, "train": 0, "val": 0, "test": 4}
    write_card(root.parent / "cards", archive(URL), **changes)
    given = _given(root, {"small.zip": tarred(below("in-a", there) | {"in-a/README.txt": b"x"})})
    done = prepare(root, "--offline-from", given)
    assert done.code == 0, done.err
    assert {path: laid_out(root)[path] for path in there} == there


@pytest.mark.parametrize("place", ["", "ILSVRC/Data/CLS-LOC", "imagenet/images"])
def test_imagenet_is_linked_from_a_copy(place, root):
    _parent(root)
    copy = root.parent / "copy"
    for half, count in (("train", 2), ("val", 1)):
        for name in ("n01", "n02", "n03"):
            for index in range(count):
                file = copy / place / half / name / f"{index}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(index))
    done = prepare(root, f"imagenet_dir={copy}", dataset="parent")
    assert done.out == f"parent: completed: 9 images in {root / 'parent'}\n", done.err
    assert (root / "parent" / "pictures" / "train").is_symlink()
    card = load_card("parent", root.parent / "cards")
    assert len(load_splits(card, root).test) == 3
    again = prepare(root, dataset="parent")
    assert again.out.startswith("parent: is complete: 9 images")


def test_imagenet_is_never_downloaded(root):
    _parent(root)
    done = prepare(root, dataset="parent")
    assert done.code == 2
    assert "its terms forbid fetching it for you" in done.err
    assert "imagenet_dir=FOLDER" in done.err
    (root.parent / "copy").mkdir()
    done = prepare(root, f"imagenet_dir={root.parent / 'copy'}", dataset="parent")
    assert f"{root.parent / 'copy'} has no folders train/ and val/" in done.err
    done = prepare(root, dataset="all")
    assert done.code == 0
    assert "left out; it is never downloaded" in done.err


def test_imagenet_validation_images_without_class_folders_are_refused(root):
    _parent(root)
    copy = root.parent / "copy"
    for name in ("n01", "n02", "n03"):
        (copy / "train" / name).mkdir(parents=True)
        (copy / "train" / name / "0.JPEG").write_bytes(picture(0))
    (copy / "val").mkdir()
    (copy / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture(1))
    done = prepare(root, f"imagenet_dir={copy}", dataset="parent")
    assert done.code == 2
    assert "one folder per class" in done.err
    assert not (root / "parent").exists()
