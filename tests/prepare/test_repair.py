"""repair=true replaces damaged files, and puts them back if no source works."""

import pytest

from tests.helpers.archives import (
    SPLIT_FILE,
    archive,
    images,
    laid_out,
    picture,
    prepare,
    split_bytes,
    split_source,
    write_card,
    zipped,
)


@pytest.fixture
def whole(server, root):
    """A complete dataset for tests to damage."""
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", archive(server.serve("a.zip", zipped(images()))), split)
    prepare(root)
    return root


DAMAGE = {
    "ant/ant_0.jpg": picture(0)[:-200],
    "bee/bee_1.jpg": b"<html>404</html>",
    "cat/cat_2.jpg": b"",
}


def test_damaged_images_are_replaced_only_with_repair(whole, server):
    pictures = whole / "small" / "pictures"
    for path, data in DAMAGE.items():
        (pictures / path).write_bytes(data)
    assert prepare(whole).code == 0
    assert laid_out(whole) == images() | {p: d for p, d in DAMAGE.items() if d}
    assert prepare(whole, "repair=true").out.startswith("small: completed: 12 images")
    assert laid_out(whole) == images()
    asked = len(server.asked)
    assert prepare(whole, "repair=true").out.startswith("small: is complete")
    assert len(server.asked) == asked
    assert [path.name for path in whole.iterdir()] == ["small"]


def test_damaged_files_stay_if_no_source_works(whole, server):
    for path, data in DAMAGE.items():
        (whole / "small" / "pictures" / path).write_bytes(data)
    server.serve("a.zip", status=404)
    assert prepare(whole, "repair=true").code == 1
    assert laid_out(whole) == images() | DAMAGE


def test_a_damaged_split_file_is_replaced_with_repair(whole, server):
    split = whole / "small" / SPLIT_FILE
    split.write_bytes(split_bytes()[:-40])
    done = prepare(whole)
    assert done.code == 2
    assert "not JSON" in done.err
    assert prepare(whole, "repair=true").code == 0
    assert split.read_bytes() == split_bytes()
    split.write_bytes(b"{}")
    server.serve("split_small.json", status=404)
    assert prepare(whole, "repair=true").code == 1
    assert split.read_bytes() == b"{}"


def test_a_folder_in_an_images_place_is_replaced_with_repair(whole):
    image = whole / "small" / "pictures" / "ant" / "ant_0.jpg"
    image.unlink()
    image.mkdir()
    done = prepare(whole)
    assert done.code == 1
    assert "something else is where 1 images should be, first ant/ant_0.jpg" in done.err
    assert prepare(whole, "repair=true").code == 0
    assert laid_out(whole) == images()
