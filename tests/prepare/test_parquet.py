"""Parquet sets in Hugging Face's layout: images found by file name, column and label."""

import io
import json
import re
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from so_clip.prepare.parquet import listed_files
from so_clip.prepare.sources import SourceFailed
from tests.helpers.archives import (
    CLASSES,
    images,
    laid_out,
    picture,
    prepare,
    prepare_without,
    split_bytes,
    split_source,
    write_card,
)


def parquet(rows, labels=None):
    """Return a parquet file of rows (name within the image, bytes, label, id)."""
    table = {
        "image": pa.array(
            [{"bytes": data, "path": name} for name, data, _, _ in rows],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([label for _, _, label, _ in rows]),
        "image_id": pa.array([image_id for *_, image_id in rows]),
    }
    made = pa.table(table)
    if labels:
        info = {"info": {"features": {"label": {"names": labels, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(info)})
    data = io.BytesIO()
    pq.write_table(made, data)
    return data.getvalue()


def _rows(name=lambda path: PurePosixPath(path).name, image_id=lambda path: None):
    return [
        (name(path), data, CLASSES.index(path.split("/")[0]), image_id(path))
        for path, data in images().items()
    ]


def _card(server, root, *files, **more):
    source = {"kind": "parquet", "holds": "images", "files": list(files)} | more
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", source, split)


def test_images_are_placed_by_their_own_file_names(server, root):
    rows = _rows()
    rows.append(("not_in_the_split.jpg", picture(99), 0, None))
    files = [
        {"url": server.serve("data/train-0.parquet", parquet(rows[:5]))},
        {"url": server.serve("data/test-0.parquet", parquet(rows[5:]))},
    ]
    _card(server, root, *files)
    assert prepare(root).code == 0
    assert laid_out(root) == images()


def test_images_are_placed_by_a_column_of_names_without_suffix(server, root):
    rows = _rows(name=lambda _: None, image_id=lambda path: PurePosixPath(path).stem)
    url = server.serve("a.parquet", parquet(rows))
    _card(server, root, {"url": url}, name_column="image_id")
    assert prepare(root).code == 0
    assert laid_out(root) == images()


def test_labels_distinguish_images_of_one_name(server, root):
    lists = json.loads(split_bytes())
    for part in lists.values():
        for entry in part:
            folder, name = entry[0].split("/")
            entry[0] = f"{folder}/image_{name[-5]}.jpg"
    there = {path.replace(f"/{path[:3]}_", "/image_"): data for path, data in images().items()}
    rows = [
        (PurePosixPath(path).name, data, CLASSES.index(path.split("/")[0]), None)
        for path, data in there.items()
    ]
    url = server.serve("a.parquet", parquet(rows, labels=[name.upper() for name in CLASSES]))
    split = split_source(server.serve("split_small.json", json.dumps(lists).encode()))
    source = {"kind": "parquet", "holds": "images", "files": [{"url": url}]}
    write_card(root.parent / "cards", source, split)
    assert prepare(root).code == 0
    assert laid_out(root) == there


def test_a_parquet_file_can_hold_one_folder(server, root):
    # As in Stanford Cars, both folders have an image 00001.jpg.
    where = {"train": ["cars_train/1.jpg", "cars_train/2.jpg"], "val": ["cars_train/3.jpg"]}
    where["test"] = ["cars_test/1.jpg", "cars_test/2.jpg"]
    listed = [path for part in where.values() for path in part]
    there = {path: picture(number) for number, path in enumerate(listed)}
    files = []
    for folder in ("cars_train", "cars_test"):
        rows = [
            (path.split("/")[1], data, 0, None)
            for path, data in there.items()
            if path.startswith(folder)
        ]
        files.append({"url": server.serve(f"{folder}.parquet", parquet(rows)), "below": folder})
    lists = {part: [[path, 0, "car"] for path in some] for part, some in where.items()}
    split = split_source(server.serve("split_small.json", json.dumps(lists).encode()))
    source = {"kind": "parquet", "holds": "images", "files": files}
    sizes = {"classes": 1, "train": 2, "val": 1, "test": 2}
    more = {"sizes": sizes, "class_names": ["car"], "image_dir": ""}
    write_card(root.parent / "cards", source, split, **more)
    assert prepare(root).code == 0
    assert {path: (root / "small" / path).read_bytes() for path in listed} == there


def test_a_listing_names_the_files(server, root):
    rows = _rows()
    first = server.serve("default/train/0000.parquet", parquet(rows[:7]))
    second = server.serve("default/train/0001.parquet", parquet(rows[7:]))
    listing = {"parquet_files": [{"url": first, "size": 1}, {"url": second}], "partial": False}
    url = server.serve("parquet", json.dumps(listing).encode(), content_type="application/json")
    source = {"kind": "parquet", "holds": "images", "listing": url}
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", source, split)
    assert prepare(root).code == 0
    assert laid_out(root) == images()


@pytest.mark.parametrize("text", ["[", "{}", '["http://x/a.zip"]', '["file:///a.parquet"]'])
def test_a_listing_without_parquet_files_is_refused(text, tmp_path):
    (tmp_path / "listing.json").write_text(text)
    with pytest.raises(SourceFailed, match=r"^http://x/list: "):
        listed_files(tmp_path / "listing.json", "http://x/list")


def _large():
    data = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(data, "PNG")
    return data.getvalue()


BAD = {
    "names are lost": (
        lambda: parquet(_rows(name=lambda _: None)),
        "no row of a.parquet has the file name of an image.*cannot be identified",
    ),
    "an image is not in it": (lambda: parquet(_rows()[1:]), "1 of 12 images are not in it, first"),
    "no image column": (lambda: _table({"text": ["x"]}), "one column of images was expected"),
    "no bytes": (
        lambda: parquet([(name, None, label, None) for name, _, label, _ in _rows()]),
        "holds no image, only its path",
    ),
    "too large": (
        lambda: parquet([("ant_0.jpg", _large(), 0, None), *_rows()[1:]]),
        "ant/ant_0.jpg: the image is too large",
    ),
    "a bomb": (lambda: _bomb(), "would unpack to"),
    "cut short": (lambda: parquet(_rows())[:-50], "damaged or cut short"),
    "no parquet at all": (lambda: b"PAR2" * 99, "damaged or cut short"),
}


def _table(columns):
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data)
    return data.getvalue()


def _bomb():
    same = pa.array([{"bytes": bytes(2**20), "path": "ant_0.jpg"}] * 64)
    data = io.BytesIO()
    pq.write_table(pa.table({"image": same}), data, compression="zstd", use_dictionary=False)
    return data.getvalue()


@pytest.mark.parametrize(("made", "message"), BAD.values(), ids=BAD)
def test_unusable_parquet_sets_are_named(made, message, server, root):
    url = server.serve("a.parquet", made())
    _card(server, root, {"url": url})
    done = prepare(root)
    assert done.code == 1
    assert re.search(message, done.err), done.err
    assert laid_out(root) == {}


def test_without_pyarrow_the_pip_command_is_named_before_a_download(server, root):
    _card(server, root, {"url": server.serve("a.parquet", parquet(_rows()))})
    said = prepare_without("pyarrow", root)
    assert "a parquet set needs pyarrow" in said
    assert "pip install 'so-clip[prepare]'" in said
    assert said.endswith("1\n")
    assert not server.ranges("a.parquet")
