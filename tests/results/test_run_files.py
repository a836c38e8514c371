"""Files of runs: what is whole is read, and nothing in a file's place holds a reader up."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from so_clip.errors import InputError
from so_clip.results.run_files import (
    MAX_BYTES,
    MAX_DEPTH,
    columns_if_whole,
    read_columns,
    read_metrics,
    read_object,
    run_folders,
)
from tests.helpers.report_runs import write_run

TABLE = 'path,label,loss\n"a, b",3,0.5\nnan,-1,\n'


def _nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


def _place(path: Path, what: str) -> None:
    """Put something other than a file of JSON where one should be; path is in the working folder,
    since names of sockets are short."""
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif what == "circle":
        path.symlink_to(path)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    elif what == "deep":
        path.write_text(_nested(MAX_DEPTH + 1))
    elif what == "deeper":
        path.write_text("[" * 200_000)
    elif what == "binary":
        path.write_bytes(bytes(range(256)))
    elif what == "endless number":
        path.write_text(json.dumps({"accuracy_percent": 1})[:-1] + "0" * 10_000 + "}")


@pytest.mark.parametrize(
    "what",
    [
        *("nothing", "folder", "pipe", "socket", "circle", "endless", "huge", "deep", "deeper"),
        *("binary", "endless number"),
    ],
)
def test_what_is_no_file_of_json_is_told_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "metrics.json"
    _place(path, what)
    with pytest.raises(InputError, match="Delete its folder and repeat") as caught:
        read_metrics(path)
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert len(str(caught.value)) < 400
    assert read_object(path) == {}
    assert columns_if_whole(path, whole=("label",)) is None


def test_as_deep_as_settings_may_be(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(_nested(MAX_DEPTH))
    assert read_metrics(path) == json.loads(path.read_text())


def test_columns_are_read_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    found = read_columns(path, whole=("label",), numbers=("loss", "label"), texts=("path",))
    assert found["path"] == ["a, b", "nan"]
    np.testing.assert_array_equal(found["loss"], [0.5, np.nan])
    assert found["label"].tolist() == [3.0, -1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no whole table"),
        ("path,label,loss\n", "it is no whole table"),
        (TABLE + "c,", "it is no whole table"),
        (TABLE + 'c,1,"0.', "it is no whole table"),
        (TABLE + "c,1.5,0\n", "it is no whole table"),
        (TABLE + "c,,0\n", "it is no whole table"),
        (TABLE + f"c,{2**63},0\n", "it is no whole table"),
        (TABLE + "c,1,high\n", "it is no whole table"),
        (TABLE + "c" * 200_000 + ",1,1\n", "it is no whole table"),
        ("path,label\na,1\n", "it has no column 'loss'"),
        ("path,label,loss,loss\na,1,1,1,1\n", "it is no whole table"),
    ],
)
def test_torn_tables_are_told_by_their_path(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_columns(path, whole=("label",), numbers=("loss",), texts=("path",))
    assert str(caught.value).startswith(f"{path} cannot be read: {reason}")


def test_runs_are_found_wherever_they_lie_and_once(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", ".hidden/c", "a/within"):
        write_run(tmp_path, name)
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "config.yaml").touch()  # of anything; by itself it makes no run of where one looks
    unreadable: list[str] = []
    found = sorted(run_folders(tmp_path, unreadable))
    assert found == [str(tmp_path / "a"), str(tmp_path / "deep" / "er" / "b")]
    assert list(run_folders(tmp_path / "a", unreadable)) == [
        str(tmp_path / "a"),
        str(tmp_path / "a" / "within"),
    ]
    assert unreadable == []
    assert list(run_folders(tmp_path / "gone", unreadable)) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may enter any folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    closed = write_run(tmp_path, "closed")
    closed.chmod(0)
    unreadable: list[str] = []
    try:
        assert list(run_folders(tmp_path, unreadable)) == []
    finally:
        closed.chmod(0o700)
    assert unreadable == [f"{closed} cannot be read: Permission denied."]
