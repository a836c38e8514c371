"""Images are found in files, folders, patterns and lists; nothing blocks, no file comes twice."""

import os
import socket
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.predict.gather import gather, paths_from


def made(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "photos", "b.jpg", "a.PNG", "oak/c.heic", "oak/deep/d.webp").parent


def test_a_folder_gives_all_images_below_it_in_order(photos):
    expected = ["photos/a.PNG", "photos/b.jpg", "photos/oak/c.heic", "photos/oak/deep/d.webp"]
    assert gather(["photos"]).paths == expected
    assert gather(["photos/"]).paths == expected
    assert gather([str(photos / "photos")]).paths == [str(photos / path) for path in expected]


def test_only_images_are_taken_from_a_folder_and_the_rest_is_counted(photos):
    made(photos / "photos", ".hidden.jpg", ".git/e.jpg", "Thumbs.db", "notes.txt", "more.TXT", "x")
    found = gather(["photos"])
    assert len(found.paths) == 4
    assert found.problems == []
    (note,) = found.notes
    assert note == (
        "photos: files that are no images, skipped: hidden (3), .txt (2), no suffix (1)."
    )


def test_a_named_file_is_taken_with_any_name(photos):
    made(photos, ".hidden", "scan")
    assert gather([".hidden", "./scan"]).paths == [".hidden", "./scan"]


def test_a_file_comes_once_under_its_first_name(photos):
    (photos / "photos" / "link.jpg").symlink_to("b.jpg")
    (photos / "again").symlink_to("photos")
    arguments = ["./photos/b.jpg", "photos", "again", "again/b.jpg", "photos/../photos/a.PNG"]
    assert gather(arguments, ["photos/b.jpg"]).paths == [
        "./photos/b.jpg",
        "photos/a.PNG",
        "photos/oak/c.heic",
        "photos/oak/deep/d.webp",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["photos/b.jpg"]),
        ("photos/[ab].*", ["photos/a.PNG", "photos/b.jpg"]),
        ("photos/**/?.webp", ["photos/oak/deep/d.webp"]),
        ("p*/oak", ["photos/oak/c.heic", "photos/oak/deep/d.webp"]),
        ("photos/.*.jpg", ["photos/.hidden.jpg"]),
        ("photos/oak/../*.jpg", ["photos/oak/../b.jpg"]),
    ],
)
def test_patterns_are_expanded(photos, pattern, expected):
    made(photos / "photos", ".hidden.jpg")
    assert gather([pattern]).paths == expected
    absolute = [str(photos / path) for path in expected]
    assert gather([f"{photos}/{pattern}"]).paths == absolute


def test_an_existing_path_is_no_pattern_and_a_list_has_none(photos):
    made(photos, "[ab].jpg")
    assert gather(["[ab].jpg"], ["photos/b.jpg"]).paths == ["[ab].jpg", "photos/b.jpg"]
    assert "*.jpg" in gather([], ["*.jpg"]).problems[0]


@pytest.mark.parametrize("pattern", ["photos/*.bmp", "none/*", "photos/**x/*"])
def test_a_pattern_that_finds_nothing_is_refused_by_name(photos, pattern):
    with pytest.raises(InputError) as error:
        gather([pattern])
    assert str(error.value).startswith(f"{pattern}: ")


def test_links_out_of_a_folder_are_refused_or_followed(photos, tmp_path_factory):
    other = made(tmp_path_factory.mktemp("other"), "far.jpg", "more/far.png")
    (photos / "photos" / "far").symlink_to(other)
    with pytest.raises(InputError, match=r"photos/far: is a link to .* Add --follow-links"):
        gather(["photos"])
    found = gather(["photos"], follow_links=True)
    assert {"photos/far/far.jpg", "photos/far/more/far.png"} <= set(found.paths)
    # The user names this link.
    assert gather(["photos/far"]).paths == ["photos/far/far.jpg", "photos/far/more/far.png"]


def test_circles_of_links_end(photos):
    (photos / "photos" / "one").symlink_to(".")
    (photos / "photos" / "oak" / "two").symlink_to("..")
    (photos / "photos" / "broken.jpg").symlink_to("nowhere")
    found = gather(["photos"])
    assert len(found.paths) == 4
    assert found.notes == ["photos: files that are no images, skipped: broken links (1)."]
    assert len(gather(["photos/**/*"]).paths) == 4


def test_pipes_sockets_and_devices_never_block(photos):
    pipe = photos / "photos" / "pipe.jpg"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("photos/socket.png")
        found = gather(["photos", "photos/pipe.jpg", "/dev/zero"])
    assert len(found.paths) == 4
    assert found.notes == ["photos: files that are no images, skipped: not plain files (2)."]
    assert found.problems == [
        "photos/pipe.jpg: this is not a plain file.",
        "/dev/zero: this is not a plain file.",
    ]


def test_what_does_not_exist_is_named_and_the_rest_is_taken(photos):
    found = gather(["photos/oak", "none.jpg", "", "x" * 5000], ["a\0b"])
    assert found.paths == ["photos/oak/c.heic", "photos/oak/deep/d.webp"]
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "none.jpg",
        "",
        "x" * 5000,
        "a\0b",
    ]
    assert found.problems[0] == "none.jpg: No such file or directory."


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_taken(photos):
    """A path above 4,096 bytes is refused by the system, also to the superuser."""
    os.chdir("photos/oak")
    for _ in range(17):
        os.mkdir("z" * 250)  # noqa: PTH102 - relative to this folder
        os.chdir("z" * 250)
    os.chdir(photos)
    found = gather(["photos"])
    assert len(found.paths) == 4
    (problem,) = found.problems
    assert problem.endswith("z: cannot be listed: File name too long.")


def test_hostile_names_stay_as_they_are(photos):
    names = [b"-dash.jpg", b"two\nlines.jpg", b"\x1b[31mred.jpg", b"a,b.jpg", b"\xff\xfe.jpg"]
    folder = os.fsencode(photos) + b"/odd"
    os.mkdir(folder)  # noqa: PTH102 - names of bytes
    for name in names:
        Path(os.fsdecode(folder + b"/" + name)).touch()
    assert sorted(map(os.fsencode, gather(["odd"]).paths)) == sorted(b"odd/" + n for n in names)
    data = b"\0".join(b"odd/" + name for name in names)
    assert gather([], paths_from(data, null=True)).paths == [
        os.fsdecode(b"odd/" + name) for name in names
    ]


def test_a_list_has_a_path_on_each_line_or_before_each_nul_byte():
    assert paths_from(b"a.jpg\n\n b.jpg\n", null=False) == ["a.jpg", " b.jpg"]
    assert paths_from(b"a\nb.jpg\0c.jpg\0", null=True) == ["a\nb.jpg", "c.jpg"]
    with pytest.raises(InputError, match="Add -0"):
        paths_from(b"a.jpg\0b.jpg", null=False)
