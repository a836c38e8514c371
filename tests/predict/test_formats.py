"""Predictions as a table, CSV and JSON lines: stable numbers, and foreign text is escaped."""

import csv
import io
import json
import os
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.escape import csv_text
from so_clip.predict.formats import default_format, text_form
from so_clip.predict.predictions import Prediction

ODD = ["a,b.jpg", "two\nlines.jpg", "\x1b[31mred.jpg", "=1+1.jpg", os.fsdecode(b"\xff.jpg"), '"q"']
NAMES = ("oak", "äpple tree", "\x1b[0m")


def predictions() -> list[Prediction]:
    return [
        Prediction(place, path, (1, 0), (NAMES[1], NAMES[0]), (0.93124999, 1e-9))
        for place, path in enumerate(ODD)
    ]


def test_csv_has_a_row_for_each_class_of_an_image_and_reads_back():
    header, lines = text_form("csv", ODD, NAMES)
    text = header + lines(predictions()[:3]) + lines(predictions()[3:])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [*rows[0]] == ["path", "rank", "label", "class", "confidence"]
    assert [csv_text(row["path"]) for row in rows[::2]] == ODD
    assert (rows[0]["rank"], rows[0]["class"]) == ("1", "äpple tree")
    assert rows[1] | {"path": ""} == {
        "path": "",
        "rank": "2",
        "label": "0",
        "class": "oak",
        "confidence": "1e-09",
    }
    assert "\x1b" not in text


def test_json_lines_have_one_object_for_each_image_in_ascii():
    header, lines = text_form("jsonl", ODD, NAMES)
    text = lines(predictions())
    assert header == ""
    assert text.isascii()
    values = [json.loads(line) for line in text.splitlines()]
    assert [value["path"] for value in values] == ODD
    assert values[0]["predictions"] == [
        {"label": 1, "class": "äpple tree", "confidence": 0.93124999},
        {"label": 0, "class": "oak", "confidence": 1e-9},
    ]


def test_the_table_is_aligned_and_one_line_is_one_class():
    header, lines = text_form("table", ODD, NAMES)
    rows = (header + lines(predictions())).splitlines()
    assert len(rows) == 1 + 2 * len(ODD)
    assert rows[0].split() == ["image", "class", "confidence"]
    assert rows[1].split() == ["a,b.jpg", "äpple", "tree", "0.9312"]
    assert rows[2].split() == ["oak", "0.0000"]
    assert rows[3].startswith("two lines.jpg")
    assert "\x1b" not in "".join(rows)
    assert len({len(row) for row in rows}) == 1


def test_a_long_path_is_printed_whole():
    path = "x" * 200
    _, lines = text_form("table", [path, "b"], NAMES)
    text = lines([Prediction(0, path, (0,), ("oak",), (1.0,))])
    assert path in text
    assert len(lines([Prediction(0, "b", (0,), ("oak",), (1.0,))])) < 100


@pytest.mark.parametrize(
    ("out", "is_terminal", "expected"),
    [
        (None, True, "table"),
        (None, False, "csv"),
        ("a.csv", True, "csv"),
        ("a.JSONL", True, "jsonl"),
        ("a.txt", False, "table"),
        ("a", True, "csv"),
    ],
)
def test_the_format_fits_the_output(out, is_terminal, expected):
    assert default_format(out and Path(out), is_terminal) == expected


def test_a_suffix_of_no_format_is_refused():
    with pytest.raises(InputError, match=r"-o a\.json: no format has the suffix .*--format"):
        default_format(Path("a.json"), True)
