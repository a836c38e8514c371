"""Split files: the real ones are read completely, and every kind of bad file is refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip.data.cards.card import load_card
from so_clip.data.examples import Example
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.lists.splits import load_splits
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError

GOOD = {
    "train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]],
    "val": [["a/2.jpg", 0, "ant"]],
    "test": [["c/1.jpg", 2, "cat"], ["b/2.jpg", 1, "bee"]],
}
# Sizes as published: train, val, test, classes.
REAL = {
    "caltech101": (4128, 1649, 2465, 100),
    "dtd": (2820, 1128, 1692, 47),
    "eurosat": (13500, 5400, 8100, 10),
    "oxford_flowers": (4093, 1633, 2463, 102),
    "oxford_pets": (2944, 736, 3669, 37),
    "stanford_cars": (6509, 1635, 8041, 196),
    "ucf101": (7639, 1898, 3783, 101),
}


@pytest.mark.parametrize("name", REAL)
def test_real_split_files_are_read_entry_by_entry(name, shared: Path):
    card = load_card(name)
    splits = load_splits(card, shared / "data" / "splits")
    sizes = (len(splits.train), len(splits.val), len(splits.test), len(splits.class_names))
    assert sizes == REAL[name]
    assert splits.sha256 == card.split_sha256
    raw = json.loads(splits.file.read_text())
    for key in ("train", "val", "test"):
        read = [[path, label, splits.class_names[label]] for path, label in getattr(splits, key)]
        assert read == raw[key]


def test_cut_down_split_file_in_the_dataset_folder_comes_first(shared: Path):
    splits = load_splits(load_card("eurosat"), shared / "data")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (860, 434, 1200)
    assert splits.class_names[0] == "Annual Crop Land"
    assert splits.sha256 != load_card("eurosat").split_sha256


def _write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_split_file_is_read_in_the_order_of_its_entries(tmp_path, make_card):
    file = _write(tmp_path / "small" / "split_small.json", GOOD)
    splits = load_splits(make_card(), tmp_path)
    assert splits.train == [Example("a/1.jpg", 0), Example("b/1.jpg", 1)]
    assert splits.val == [Example("a/2.jpg", 0)]
    assert splits.test == [Example("c/1.jpg", 2), Example("b/2.jpg", 1)]
    assert splits.class_names == ["ant", "bee", "cat"]
    assert splits.file == file
    assert splits.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert splits.dataset == "small"


@pytest.mark.parametrize("place", ["small", ".", "splits"])
def test_split_file_is_found_in_each_of_its_places(place, tmp_path, make_card):
    file = _write(tmp_path / place / "split_small.json", GOOD)
    assert load_splits(make_card(), tmp_path).file.resolve() == file.resolve()


def test_given_split_file_wins_and_needs_no_data_root(tmp_path, make_card):
    _write(tmp_path / "small" / "split_small.json", GOOD)
    other = _write(tmp_path / "other.json", GOOD | {"val": []})
    assert load_splits(make_card(), None, other).val == []
    assert load_splits(make_card(), tmp_path, other).val == []


def test_a_byte_order_mark_is_accepted(tmp_path, make_card):
    file = tmp_path / "split.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert len(read_split_file(file, make_card()).train) == 2


def _with(split: str, index: int, entry: object) -> str:
    content = {key: list(value) for key, value in GOOD.items()}
    content[split][index : index + 1] = [entry]
    return json.dumps(content)


BAD_FILES = {
    "not json": ("{train: []}", "is not JSON"),
    "empty": ("", "is not JSON"),
    "html page": ("<!DOCTYPE html><html>sign in</html>", "is not JSON"),
    "key twice": ('{"train": [], "train": []}', "is not JSON .*twice"),
    "too deep": ("[" * 100_000, "is not JSON"),
    "number too long": (f'{{"train": {"9" * 10_000}}}', "is not JSON"),
    "a list": ("[]", "found no list train"),
    "text": ('"train"', "found no list train"),
    "no val": (json.dumps({"train": [], "test": []}), "found no list val"),
    "list is a mapping": (json.dumps(GOOD | {"test": {}}), "found no list test"),
    "train empty": (json.dumps(GOOD | {"train": []}), "the train list is empty"),
    "test empty": (json.dumps(GOOD | {"test": []}), "the test list is empty"),
    "entry short": (_with("train", 1, ["b/1.jpg", 1]), r"train\[1\] is \['b/1.jpg', 1\]"),
    "entry long": (_with("val", 0, ["a", 0, "ant", 1]), r"val\[0\] is"),
    "entry text": (_with("test", 0, "abc"), r"test\[0\] is 'abc'"),
    "entry null": (_with("test", 1, None), r"test\[1\] is None"),
    "path number": (_with("train", 0, [7, 0, "ant"]), r"train\[0\] has the path 7"),
    "path absolute": (_with("train", 0, ["/etc/passwd", 0, "ant"]), "'/etc/passwd'.*absolute"),
    "path climbs": (_with("test", 1, ["../../x.jpg", 1, "bee"]), r"test\[1\] names .*'\.\.'"),
    "path climbs within": (_with("test", 1, ["a/../b.jpg", 1, "bee"]), r"'\.\.'"),
    "path drive": (_with("val", 0, ["C:/x.jpg", 0, "ant"]), "drive letter"),
    "path share": (_with("val", 0, ["\\\\host\\x.jpg", 0, "ant"]), "backslash"),
    "path backslash": (_with("val", 0, ["..\\x.jpg", 0, "ant"]), "backslash"),
    "path NUL": (_with("val", 0, ["a\0.jpg", 0, "ant"]), "NUL"),
    "path empty": (_with("val", 0, ["", 0, "ant"]), "it is empty"),
    "path folder": (_with("val", 0, ["a/", 0, "ant"]), "names a folder"),
    "path surrogate": (_with("val", 0, ["\udc80.jpg", 0, "ant"]), "not valid Unicode"),
    "label text": (_with("train", 0, ["a/1.jpg", "0", "ant"]), r"train\[0\] has the label '0'"),
    "label float": (_with("train", 0, ["a/1.jpg", 0.0, "ant"]), r"label 0\.0"),
    "label bool": (_with("train", 1, ["b/1.jpg", True, "bee"]), "label True"),
    "label null": (_with("train", 1, ["b/1.jpg", None, "bee"]), "label None"),
    "label negative": (_with("train", 0, ["a/1.jpg", -1, "ant"]), "label -1"),
    "label gap": (_with("test", 0, ["c/1.jpg", 7, "cat"]), "label 2 has no images.*reach 7"),
    "label huge": (_with("test", 0, ["c/1.jpg", 10**30, "cat"]), "label 2 has no images"),
    "name number": (_with("train", 0, ["a/1.jpg", 0, 5]), "class name 5"),
    "name blank": (_with("train", 0, ["a/1.jpg", 0, " "]), "class name ' '"),
    "two names": (
        _with("val", 0, ["a/2.jpg", 0, "bat"]),
        r"val\[0\] has 'bat' for label 0, but train\[0\] has 'ant'",
    ),
    "in two splits": (
        _with("test", 1, ["a/1.jpg", 0, "ant"]),
        r"test\[1\] repeats the image 'a/1.jpg' of train\[0\]",
    ),
    "in two splits, disguised": (_with("val", 0, ["a/./1.jpg", 0, "ant"]), r"repeats .*train\[0\]"),
    "twice in a list": (_with("train", 1, ["a/1.jpg", 1, "bee"]), r"train\[1\] repeats"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_split_files_are_refused_with_file_entry_and_way_out(
    text, message, tmp_path, make_card
):
    file = tmp_path / "split.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_split_file(file, make_card())
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "DATASETS.md" in message
    assert "\n" not in message
    assert len(message) < 600


def test_split_file_in_another_encoding_is_refused(tmp_path, make_card):
    file = tmp_path / "split.json"
    file.write_bytes(b'{"train": "\xff"}')
    with pytest.raises(InputError, match="is not JSON"):
        read_split_file(file, make_card())


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), inner)
    ),
)


@given(ANY_JSON)
def test_any_other_json_is_read_or_refused_but_never_crashes(make_card, tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError):
        read_split_file(file, make_card())


@given(st.text(alphabet="ab./\\:\0C", max_size=12))
def test_a_path_that_is_trusted_stays_inside_on_every_system(path):
    import ntpath
    import posixpath

    if why_outside(path):
        return
    for flavour, root in ((posixpath, "/data/images"), (ntpath, "C:\\data\\images")):
        joined = flavour.normpath(flavour.join(root, path))
        assert joined.startswith(root + flavour.sep)


def test_missing_split_file_says_where_it_was_looked_for(tmp_path, make_card):
    with pytest.raises(InputError) as caught:
        load_splits(make_card(), tmp_path)
    for place in ("small/split_small.json", "split_small.json", "splits/split_small.json"):
        assert str(tmp_path / place) in str(caught.value)
    assert "DATASETS.md" in str(caught.value)
    assert "dataset.split_file=FILE" in str(caught.value)


@pytest.mark.parametrize("given", ["nowhere.json", "."])
def test_given_split_file_that_cannot_be_opened(given, tmp_path, make_card):
    with pytest.raises(InputError, match="the split file cannot be read: "):
        load_splits(make_card(), tmp_path, tmp_path / given)


@pytest.mark.parametrize("root", [None, Path("/no/such/folder"), Path(__file__), Path("a\0b")])
def test_missing_data_root_is_refused(root, make_card):
    with pytest.raises(InputError, match=r"data_root.*Give the folder that holds small/"):
        load_splits(make_card(), root)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is locked to root")
def test_locked_folder_counts_as_missing(tmp_path, make_card):
    _write(tmp_path / "small" / "split_small.json", GOOD)
    (tmp_path / "small").chmod(0)
    try:
        with pytest.raises(InputError, match="was not found"):
            load_splits(make_card(), tmp_path)
    finally:
        (tmp_path / "small").chmod(0o700)


def test_split_file_for_a_layout_without_one_is_refused(tmp_path, make_card):
    card = make_card(layout="imagenet", split_file=None)
    with pytest.raises(InputError, match=r"dataset\.split_file=x\.json.*no split file"):
        load_splits(card, tmp_path, Path("x.json"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, make_card):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json: .* it is not a plain file"):
        load_splits(make_card(), None, tmp_path / "pipe.json")
