"""The command line of prepare, and sources that a card gets wrong."""

import pytest

from so_clip.data.cards.card import card_names, load_card
from so_clip.errors import InputError
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.sources import IMAGES, SPLIT, read_sources
from tests.helpers.archives import archive, write_card
from tests.helpers.command import call

BAD = [
    ("", ["dataset is missing", "dataset=all", "Known: caltech101"]),
    ("dataset=eurosta", ["dataset=eurosta", "'eurosat'"]),
    ("dataset=../x", ["there is no dataset of that name"]),
    ("dataset=dtd,nope", ["dataset=nope"]),
    ("dataset=dtd dataset=dtd", ["dataset is given twice"]),
    ("dataset=dtd data_rot=x", ["data_rot=x: there is no such option", "'data_root'"]),
    ("dataset=dtd data_root", ["data_root: needs a value: data_root="]),
    ("dataset=dtd data_root=", ["data_root is empty"]),
    ("dataset=dtd --offline", ["--offline: there is no such flag", "'--offline-from'"]),
    ("dataset=dtd --offline-from", ["--offline-from: requires an argument"]),
    ("dataset=dtd --offline-from=/no/such", ["--offline-from /no/such", "no such folder"]),
    ("dataset=dtd --offline-from={file} x", ["x: there is no such option"]),
    ("dataset=dtd,eurosat --offline-from={file}", ["is one file", "2 datasets"]),
    ("dataset=dtd retries=-1", ["retries=-1", "0 or more"]),
    ("dataset=dtd retries=many", ["retries=many", "whole number"]),
    ("dataset=dtd retries=[", ["retries=[", "whole number"]),
    ("dataset=dtd retry_seconds=-1", ["retry_seconds=-1"]),
    ("dataset=dtd timeout_seconds=0", ["timeout_seconds=0", "above 0"]),
    ("dataset=dtd max_unpacked_gib=0", ["max_unpacked_gib=0", "above 0"]),
    ("dataset=dtd max_unpacked_gib=.nan", ["max_unpacked_gib=.nan", "finite"]),
    ("dataset=dtd max_unpacked_gib=1:30", ["max_unpacked_gib=1:30", "finite number"]),
    ("dataset=dtd retries=010", ["retries='010'", "whole number"]),
    ("dataset=dtd keep_archives=on", ["keep_archives=on", "true or false"]),
    ("dataset=dtd mend=true", ["mend=true: there is no such option", "prepare --help"]),
    ("dataset=dtd keep_archives=perhaps", ["keep_archives=perhaps", "true or false"]),
    ("dataset=dtd cards_dir=/no/such", ["cards_dir=/no/such: there is no such folder"]),
    ("dataset=dtd data_root={file}", ["data_root={file}", "cannot be written", "data_root=FOLDER"]),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_bad_input_is_named_with_a_way_out(line, said, tmp_path):
    file = tmp_path / "file.zip"
    file.write_bytes(b"x")
    done = call("prepare", *line.format(file=file).split())
    assert done.code == 2, done
    assert len(done.messages) == 1
    for part in said:
        assert part.format(file=file) in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_help_names_every_option_with_its_default():
    done = call("prepare", "--help")
    assert done.code == 0
    for option in PrepareOptions.model_fields:
        flag = "--offline-from" if option == "offline_from" else f"{option}="
        assert f" {flag}" in done.out


def test_a_dataset_from_a_package_needs_no_preparation(tmp_path):
    done = call("prepare", "dataset=digits", f"data_root={tmp_path}")
    assert done.code == 0
    assert done.out == "digits: comes with so_clip, nothing is to be fetched\n"


def test_every_dataset_of_the_project_has_sources_that_can_be_read():
    for name in card_names():
        card = load_card(name)
        pictures, splits = (read_sources(card, holds) for holds in (IMAGES, SPLIT))
        if card.layout == "split_file":
            assert pictures
            assert len(splits) >= 2
        elif card.layout != "imagenet":
            assert bool(pictures) == (card.layout not in ("digits", "package_folders"))


FILE = {"url": "https://example.org/a.zip"}
BAD_SOURCES = [
    ({"kind": "zip", "holds": "images"}, r"sources\[0\]\.kind: must be archive or parquet"),
    (
        {"kind": "archive", "holds": "it all", "files": [FILE]},
        r"\.holds: must be images or",
    ),
    ({"kind": "archive", "holds": "images"}, r"kind: archive needs a list of files"),
    ({"kind": "archive", "holds": "images", "files": FILE}, r"\.files: must be a list"),
    ({"kind": "archive", "holds": "images", "files": ["x"]}, r"\.files\[0\]: must be a mapping"),
    (
        {"kind": "archive", "holds": "images", "file": [FILE]},
        r"\.file: is .* 'files'",
    ),
    (
        {"kind": "registration", "holds": "images", "files": [FILE]},
        r"registration has no files",
    ),
    ({"kind": "parquet", "holds": "images", "files": [FILE], "name_column": 1}, r"\.name_column"),
    (archive("file:///etc/passwd"), r"\.url: must begin with http:// or https://"),
    (archive("ftp://x/a.zip"), r"\.url: must begin with http"),
    (archive("https://example.org/"), r"\.name: must name something"),
    (archive("https://example.org/a", name="../a"), r"\.name: must name something below"),
    (archive("https://example.org/a", name="b/a"), r"\.name: must name something below"),
    (archive("https://example.org/%2e%2e%2fa"), r"\.name: must name something below"),
    (archive("https://example.org/a", below="../b"), r"\.below: must name something below"),
    (archive("https://example.org/a", md5="abc"), r"\.md5: must be 32 .*hexadecimal digits"),
    (archive("https://example.org/a", sha256=7), r"\.sha256: must be a text"),
    (archive("https://example.org/a", size=7), r"\.size: is unknown"),
]


@pytest.mark.parametrize(("source", "message"), BAD_SOURCES)
def test_malformed_sources_are_named(source, message, tmp_path):
    write_card(tmp_path, source)
    with pytest.raises(InputError, match=message) as caught:
        read_sources(load_card("small", tmp_path), IMAGES)
    assert str(caught.value).startswith("small.yaml: sources[0]")
