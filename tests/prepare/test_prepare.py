"""The prepare command against a real server: it makes the layout that runs read."""

import hashlib
import json
from pathlib import Path

import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.images import open_images
from so_clip.data.lists.splits import load_splits
from so_clip.prepare.dataset import locked
from so_clip.system.locks import is_locked
from tests.helpers.archives import (
    SPLIT_FILE,
    archive,
    below,
    images,
    laid_out,
    paths,
    prepare,
    split_bytes,
    split_source,
    tarred,
    write_card,
    zipped,
)


def _cards(root, *sources, **changes):
    write_card(root.parent / "cards", *sources, **changes)


def _split(server, **how):
    return split_source(server.serve("mirror/split_small.json", split_bytes(), **how))


ARCHIVES = {
    "as it is": lambda: zipped(images()),
    "in another folder": lambda: zipped(below("Small-v2/images", images())),
    "with a dot in front": lambda: tarred(below("./pictures", images())),
    "bzip2": lambda: tarred(images(), "bz2"),
    "xz": lambda: tarred(images(), "xz"),
    "plain tar": lambda: tarred(images(), ""),
    "within another": lambda: zipped({"small/inner.tar.gz": tarred(below("x", images()))}),
    "with shadows and more": lambda: zipped(
        below("a", images())
        | {"__MACOSX/a/ant/._ant_0.jpg": b"x", "a/ant/._ant_0.jpg": b"x", "a/README": b"x"}
    ),
    "twice within each other": lambda: zipped(
        {f"{path.split('/')[0]}/{path}": data for path, data in images().items()}
    ),
}


@pytest.mark.parametrize("made", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_becomes_the_layout_whatever_its_folders(made, server, root):
    _cards(root, archive(server.serve("small.zip", made())), _split(server))
    done = prepare(root)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"small: completed: 12 images in {root / 'small'}\n"
    assert laid_out(root) == images()
    assert (root / "small" / SPLIT_FILE).read_bytes() == split_bytes()
    assert sorted(path.name for path in root.iterdir()) == ["small"]
    card = load_card("small", root.parent / "cards")
    splits = load_splits(card, root)
    assert open_images(card, root).read(splits.test[0].path).size == (8, 8)


def test_a_complete_dataset_is_not_downloaded_again(server, root):
    _cards(root, archive(server.serve("small.zip", zipped(images()))), _split(server))
    prepare(root)
    asked = list(server.asked)
    again = prepare(root)
    assert again.out == f"small: is complete: 12 images in {root / 'small'}\n"
    assert server.asked == asked


def test_existing_images_are_kept_and_missing_ones_added(server, root):
    _cards(root, archive(server.serve("small.zip", zipped(images()))), _split(server))
    folder = root / "small" / "pictures"
    (folder / "ant").mkdir(parents=True)
    (folder / "ant" / "ant_0.jpg").write_bytes(b"mine")
    (folder / "ant" / "ant_1.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    assert prepare(root).code == 0
    expected = images() | {"ant/ant_0.jpg": b"mine", "notes.txt": b"mine"}
    assert laid_out(root) == expected


def test_a_shortened_split_file_is_kept_and_only_its_images_are_needed(server, root):
    (root / "small").mkdir(parents=True)
    lists = {"train": [["ant/ant_0.jpg", 0, "ant"]], "val": []}
    mine = json.dumps(lists | {"test": [["ant/ant_3.jpg", 0, "ant"]]}).encode()
    (root / "small" / SPLIT_FILE).write_bytes(mine)
    some = {path: data for path, data in images().items() if path.startswith("ant")}
    _cards(root, archive(server.serve("small.zip", zipped(some))))
    assert prepare(root).code == 0
    assert (root / "small" / SPLIT_FILE).read_bytes() == mine
    assert list(laid_out(root)) == ["ant/ant_0.jpg", "ant/ant_3.jpg"]


def test_a_split_file_in_a_flat_collection_is_enough(server, root):
    (root / "splits").mkdir(parents=True)
    (root / "splits" / SPLIT_FILE).write_bytes(split_bytes())
    _cards(root, archive(server.serve("small.zip", zipped(images()))))
    assert prepare(root).code == 0
    assert laid_out(root) == images()


def test_sources_are_tried_in_order_until_one_works(server, root):
    good = zipped(images())
    md5 = hashlib.md5(good).hexdigest()
    _cards(
        root,
        archive(server.serve("gone.zip", status=404)),
        archive(server.serve("other.zip", zipped({"x.txt": b"x"}))),
        archive(server.serve("wrong.zip", good), md5="0" * 32),
        archive(server.serve("cut.zip", good[:-600])),
        archive(server.serve("good.zip", good), md5=md5),
        archive(server.serve("never.zip", good)),
        _split(server),
    )
    done = prepare(root)
    assert done.code == 0
    assert laid_out(root) == images()
    said = done.messages
    assert len(said) == 4
    assert "gone.zip: HTTP 404, the file does not exist" in said[0]
    assert "--offline-from FOLDER" in said[0]
    assert "other.zip: 12 of 12 images are not in it, first ant/ant_0.jpg" in said[1]
    assert f"wrong.zip: wrong.zip has the md5 {md5}, expected {'0' * 32}" in said[2]
    assert "cut.zip: damaged or cut short" in said[3]
    assert all(line.startswith("so_clip: small: ") for line in said)
    assert not server.ranges("never.zip")


def test_if_no_source_works_all_are_named_with_the_ways_out(server, root):
    gone = server.serve("gone.zip", status=404)
    _cards(root, archive(gone), _split(server))
    done = prepare(root)
    assert done.code == 1
    message = done.err[done.err.index("so_clip: ") :]
    assert "dataset=small: no source of the images worked" in message
    assert done.err.count(gone) == 1  # said once, when it failed
    assert "gone.zip elsewhere (https://example.org/small)" in message
    assert "--offline-from FOLDER" in message
    assert not (root / "small" / "pictures").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: b"<html>quota</html>", "not JSON"),
        (lambda: split_bytes().replace(b"ant/ant_0.jpg", b"../ant_0.jpg"), "climbs out"),
        (lambda: split_bytes().replace(b"ant/ant_0.jpg", b"/etc/passwd"), "it is absolute"),
        (
            lambda: split_bytes().replace(b'["ant/ant_0.jpg", 0, "ant"], ', b""),
            "lists 3 classes, 3 test, 5 train, 3 val, but 3 classes, 3 test, 6 train",
        ),
    ],
)
def test_a_split_file_is_checked_before_it_is_used(made, message, server, root):
    bad = split_source(server.serve("bad/split_small.json", made()))
    _cards(root, bad, archive(server.serve("small.zip", zipped(images()))))
    done = prepare(root)
    assert done.code == 1
    assert message in done.err
    assert not (root / "small").exists()
    _cards(root, bad, _split(server), archive(server.serve("small.zip", zipped(images()))))
    assert prepare(root).code == 0
    assert laid_out(root) == images()


def test_a_split_file_must_have_its_published_checksum(server, root):
    pictures = archive(server.serve("small.zip", zipped(images())))
    _cards(root, _split(server), pictures, split_sha256="0" * 64)
    done = prepare(root)
    assert done.code == 1
    assert f"has the sha256 {hashlib.sha256(split_bytes()).hexdigest()}" in done.err
    _cards(root, _split(server), pictures, split_sha256=hashlib.sha256(split_bytes()).hexdigest())
    assert prepare(root).code == 0


def test_several_archives_make_one_dataset(server, root):
    ants = {path: data for path, data in images().items() if path.startswith("ant")}
    rest = {path: data for path, data in images().items() if path not in ants}
    first, second = server.serve("1.tgz", tarred(ants)), server.serve("2.tgz", tarred(rest))
    _cards(root, archive(first, second), _split(server), image_dir="")
    assert prepare(root).code == 0
    there = {path: (root / "small" / path).read_bytes() for path in paths()}
    assert there == images()


def test_keep_archives_keeps_the_downloads(server, root):
    served = zipped(images())  # once: an archive holds the time it was made at
    _cards(root, archive(server.serve("small.zip", served)), _split(server))
    prepare(root, "keep_archives=true")
    (kept,) = (root / ".prepare").rglob("small.zip")
    assert kept.read_bytes() == served
    assert sorted(path.name for path in (root / ".prepare" / "small").iterdir()) == ["downloads"]


def test_all_continues_after_a_failure_and_names_the_missing_datasets(server, root):
    _cards(root, archive(server.serve("small.zip", zipped(images()))), _split(server))
    write_card(root.parent / "cards", name="lost", folder="lost")
    write_card(root.parent / "cards", name="shipped", layout="digits", split_file=None)
    done = prepare(root, dataset="all")
    assert done.code == 1
    assert "small: completed" in done.out
    assert "so_clip: lost: dataset=lost: no source of the split file worked" in done.err
    assert done.messages[-1] == "so_clip: 1 of 2 not there: lost."
    assert prepare(root, dataset="shipped").out.startswith("shipped: comes with so_clip")


def test_a_dataset_folder_may_be_a_link(server, root):
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    root.mkdir()
    (root / "small").symlink_to(elsewhere)
    _cards(root, archive(server.serve("small.zip", zipped(images()))), _split(server))
    assert prepare(root).code == 0
    assert (elsewhere / "pictures" / "ant" / "ant_0.jpg").is_file()


@pytest.mark.skipif(not Path("/sys").exists(), reason="needs a folder that nobody can write to")
def test_a_read_only_data_root_is_used_without_a_lock():
    messages: list[str] = []
    with locked(Path("/sys"), messages.append):
        assert messages == []


def test_a_data_root_is_locked_only_during_preparation(tmp_path):
    with locked(tmp_path, print):
        assert is_locked(tmp_path)
    assert [*tmp_path.iterdir()] == []
