"""Files of runs: complete ones are read, torn ones are refused by their path."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from so_clip.errors import InputError
from so_clip.results.run_files import (
    columns_if_whole,
    finished_metrics,
    number_of,
    read_columns,
    read_metrics,
    read_object,
    run_folders,
)
from tests.helpers.report_runs import write_run

TABLE = 'path,label,loss\n"a, b",3,0.5\nnan,1,\n'


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
    assert found["label"].tolist() == [3.0, 1.0]


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
        (TABLE + "c,-1,0\n", "it is not a complete table (label is -1"),
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy_percent", 5000),
        ("accuracy_percent", -0.5),
        ("accuracy_percent", math.inf),
        ("zero_shot_accuracy_percent", 100.5),
        ("mean_class_accuracy_percent", 101),
        ("new_accuracy_percent", -1e-9),
        ("train_seconds", -3),
        ("train_seconds", math.nan),
        ("evaluate_seconds", 1e20),
        ("peak_memory_mib", 1e300),
        ("weights_mib", -1),
        ("shots", -4),
        ("shots", 4.5),
        ("seed", 2**64),
        ("steps", -200),
        ("final_loss", math.nan),
        ("processes", -2),
        ("transfer", {"dtd": {"accuracy_percent": 5000}}),
        ("transfer", {"dtd": {"accuracy_percent": 50, "zero_shot_accuracy_percent": -1}}),
    ],
)
def test_a_run_with_an_impossible_number_is_refused_by_its_name(tmp_path, key, value):
    folder = write_run(tmp_path, "a")
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text())
    assert finished_metrics(folder) == metrics
    file.write_text(json.dumps(metrics | {key: value}))
    with pytest.raises(InputError, match=f"metrics.json: {key} is ") as caught:
        finished_metrics(folder)
    assert len(str(caught.value)) < 400
    if not isinstance(value, dict):
        assert number_of({key: value}, key) is None or key == "shots"


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("accuracy_percent", "5000"),
        ("accuracy_percent", "inf"),
        ("confidence", "7"),
        ("images", "-3"),
        ("step", "-1"),
    ],
)
def test_a_table_with_an_impossible_number_is_refused(tmp_path, column, cell):
    path = tmp_path / "table.csv"
    path.write_text(f"{column},loss\n,-0.5\n0.5,inf\n")
    assert read_columns(path, numbers=(column, "loss"))["loss"].tolist() == [-0.5, math.inf]
    path.write_text(f"{column},loss\n{cell},1\n")
    with pytest.raises(InputError, match=f"{column} is "):
        read_columns(path, numbers=(column, "loss"))


@pytest.mark.parametrize(
    "values",
    [
        {"method_title": "x" * 6000},
        {"settings": {"template": "x" * 6000}},
        {"settings": {"x" * 6000: 1}},
        {"settings": {"adapter": {"roles": ["x" * 99] * 60}}},
        {"transfer": {"x" * 6000: {"accuracy_percent": 50.0}}},
    ],
    ids=lambda values: str(values)[:40],
)
def test_a_text_that_would_fill_a_terminal_is_refused_by_its_name(tmp_path, values):
    folder = write_run(tmp_path, "a")
    file = folder / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    _is_refused(folder)


def test_settings_that_are_nested_too_deeply_are_refused(tmp_path):
    folder = write_run(tmp_path, "a")
    file = folder / "metrics.json"
    metrics = json.dumps(json.loads(file.read_text()) | {"settings": "DEEP"})
    file.write_text(metrics.replace('"DEEP"', '{"a":' * 3000 + "1" + "}" * 3000))
    _is_refused(folder)


def _is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="Delete its folder and repeat") as caught:
        finished_metrics(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 400
