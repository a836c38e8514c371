"""Files of runs: complete ones are read, torn ones are refused by their path."""

import os
from pathlib import Path

import numpy as np
import pytest

from so_clip.errors import InputError
from so_clip.results.run_files import (
    columns_if_whole,
    read_columns,
    read_metrics,
    read_object,
    run_folders,
)
from tests.helpers.report_runs import write_run

TABLE = 'path,label,loss\n"a, b",3,0.5\nnan,-1,\n'


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[1]", b"3", b"null", b'{"a": 1', b"\xff\xfe", b"[" * 200_000],
    ids=lambda content: str(content)[:20],
)
def test_a_torn_or_foreign_file_is_refused_by_its_path(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "metrics.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for file in (path, tmp_path / "missing.json"):
        with pytest.raises(InputError, match="Delete its folder and repeat") as caught:
            read_metrics(file)
        assert str(caught.value).startswith(f"{file} cannot be read: ")
        assert len(str(caught.value)) < 400
        assert read_object(file) == {}
        assert columns_if_whole(file, whole=("label",)) is None


def test_columns_are_read_by_their_type(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    found = read_columns(path, whole=("label",), numbers=("loss", "label"), texts=("path",))
    assert found["path"] == ["a, b", "nan"]
    np.testing.assert_array_equal(found["loss"], [0.5, np.nan])
    assert found["label"].tolist() == [3.0, -1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not a complete table"),
        ("path,label,loss\n", "it is not a complete table"),
        (TABLE + "c,", "it is not a complete table"),
        (TABLE + 'c,1,"0.', "it is not a complete table"),
        (TABLE + "c,1.5,0\n", "it is not a complete table"),
        (TABLE + "c,,0\n", "it is not a complete table"),
        (TABLE + f"c,{2**63},0\n", "it is not a complete table"),
        (TABLE + "c,1,high\n", "it is not a complete table"),
        (TABLE + "c" * 200_000 + ",1,1\n", "it is not a complete table"),
        ("path,label\na,1\n", "it has no column 'loss'"),
        ("path,label,loss,loss\na,1,1,1,1\n", "it is not a complete table"),
    ],
)
def test_a_torn_table_is_refused_by_its_path(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_columns(path, whole=("label",), numbers=("loss",), texts=("path",))
    assert str(caught.value).startswith(f"{path} cannot be read: {reason}")


def test_each_run_is_found_once_at_any_depth(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", ".hidden/c", "a/within"):
        write_run(tmp_path, name)
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "config.yaml").touch()  # alone, it does not make the top folder a run
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
