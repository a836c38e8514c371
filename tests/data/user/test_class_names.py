"""Readable class names from folder names, and from files."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip.data.user.class_names import class_names, in_order, number_of, pairs_text, readable
from so_clip.errors import InputError

PLACE = Path("mine")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("big_cat", "big cat"),
        ("snow-covered__hill", "snow covered hill"),
        (" X ", "X"),
        ("cafe\u0301", "café"),
        ("猫", "猫"),
        ("🐱_cat", "🐱 cat"),
        ("AnnualCrop", "AnnualCrop"),
        ("-1", "-1"),
    ],
)
def test_underscores_and_hyphens_are_blanks(key: str, name: str):
    assert readable(key) == name
    assert class_names([key, "other"], None, PLACE)[0] == name


@given(st.text())
def test_readable_names_do_not_change(key: str):
    name = readable(key)
    assert readable(name) == name
    assert number_of(name) is not None or not re.search(r"[_-]|\s\s|^\s|\s$", name)


def test_numbers_are_sorted_by_value_and_words_by_letters():
    assert in_order(["10", "9", "0"]) == ["0", "9", "10"]
    floats = [f"{number}.0" for number in range(12)]
    assert in_order(sorted(floats)) == floats
    assert in_order(["010", "9", "-1", "2.5", "1e1", "+3"]) == [
        "-1",
        "2.5",
        "+3",
        "9",
        "010",
        "1e1",
    ]
    assert in_order(["10", "9", "nan"]) == ["10", "9", "nan"]
    assert in_order(["10", "9", "a"]) == ["10", "9", "a"]
    assert in_order(["b", "B", "é"]) == ["B", "b", "é"]


FILES = {
    "names.json": json.dumps(["ant", "big bee", "cat"]),
    "map.json": json.dumps({"0": "ant", "1": "big bee", "2": "cat"}),
    "names.yaml": "- ant\n- big bee\n- cat\n",
    "map.yml": "0: ant\n1: big bee\n2: cat\n",
    "names.txt": "\ufeffant\r\n  big  bee\r\n\r\ncat\r\n",
    "map.txt": "1\tbig bee\n0\tant\n2\tcat",
}


@pytest.mark.parametrize("name", FILES)
def test_names_are_read_from_files_of_every_format(name: str, tmp_path: Path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    assert class_names(["0", "1", "2"], tmp_path / name, PLACE) == ["ant", "big bee", "cat"]


def test_a_mapping_may_leave_classes_out(tmp_path: Path):
    file = tmp_path / "some.json"
    file.write_text('{"tc": "tabby cat"}')
    assert class_names(["big_dog", "tc"], file, PLACE) == ["big dog", "tabby cat"]


def test_a_number_is_the_key_of_the_class_with_its_value(tmp_path: Path):
    keys = ["0.0", "1.0", "-2.50"]
    for name, content in {
        "map.json": '{"0": "zero", "-2.5": "minus"}',
        "map.yaml": "0: zero\n-2.5: minus\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert class_names(keys, tmp_path / name, PLACE) == ["zero", "1.0", "minus"]
    (tmp_path / "map.json").write_text('{"0": "zero", "0.0": "nought"}')
    with pytest.raises(InputError, match=r"the class '0\.0' has two names"):
        class_names(keys, tmp_path / "map.json", PLACE)


def test_only_lists_name_classes_by_position(tmp_path: Path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        found = class_names(["0", "1", "2"], tmp_path / name, PLACE)
        assert found.by_position == name.startswith("names")
    pairs = [(f"{number}.0", f"name {number}") for number in range(9)]
    assert pairs_text(pairs[:2], 4) == "0.0 = name 0, 1.0 = name 1"
    shown = "0.0 = name 0, 1.0 = name 1, ..., 7.0 = name 7, 8.0 = name 8"
    assert pairs_text(pairs, 4) == shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("```\nant\n```\n", r"names\.txt: line 1: is a code fence"),
        ("1. ant\n2. bee\n", r"names\.txt: line 1: begins with '1\.'.*Delete these marks"),
        ("- ant\n- bee\n", r"line 1: begins with '-', as all lines begin with a bullet"),
    ],
)
def test_marks_of_markdown_do_not_become_names(content: str, message: str, tmp_path: Path):
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        class_names(["a", "b", "c"][: content.count("\n")], tmp_path / "names.txt", PLACE)


BAD = {
    "no class": (
        '{"cta": "Cat"}',
        r"'cta' is not a class\. Did you mean 'cat'\? .*'cat'",
    ),
    "short": ('["ant"]', r"lists 1 names, but there are 2 classes, from 'ant' to 'cat'"),
    "number": ('{"ant": 3}', r"the name of 'ant' must be text, not 3"),
    "text": ('"ant"', r"must hold a mapping from classes to names|lists 1 names"),
    "twice": ('{"ant": "a", "ant": "b"}', r"is not JSON: the key 'ant' is given twice"),
    "broken": ("{", r"is not JSON: "),
    "alike": ('["Big cat", "big_cat"]', r"'ant' and 'cat' are both 'big_cat' in a prompt\. Give"),
    "bell": ('["a\\u0007", "b"]', r"the class 'ant' has no name that can be part of a prompt"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_refused(content: str, message: str, tmp_path: Path):
    file = tmp_path / "names.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        class_names(["ant", "cat"], file, PLACE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("001: a\n", r"has read a key as the number 1, .* in quotes, such as \"001\"\."),
        ("010: a\n", r"has read a key as the number 8, .* in quotes, such as \"008\"\."),
        ("no: a\n", r"has read a key as False\. Put the name in quotes"),
        ("~: a\n", r"has read a key as None\. Put the name in quotes"),
    ],
)
def test_keys_that_yaml_does_not_read_as_text_are_refused(
    content: str, message: str, tmp_path: Path
):
    file = tmp_path / "names.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        class_names(["001", "008", "010", "no"], file, PLACE)
    file.write_text('"010": ten\n')
    assert class_names(["001", "010"], file, PLACE) == ["001", "ten"]


def test_a_repeated_key_in_a_text_file_is_refused(tmp_path: Path):
    file = tmp_path / "names.txt"
    file.write_text("ant\ta\ncat\tc\nant\tb\n")
    with pytest.raises(InputError, match=r"names\.txt: the key 'ant' is given twice"):
        class_names(["ant", "cat"], file, PLACE)


def test_a_path_that_is_not_a_file_is_named(tmp_path: Path):
    for file, reason in (
        (tmp_path / "no.txt", "cannot be read: No such"),
        (tmp_path, "cannot be read: it is not a plain file"),
    ):
        with pytest.raises(InputError, match=re.escape(f"dataset.class_names: {file} {reason}")):
            class_names(["ant", "cat"], file, PLACE)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.txt: line 1: is not UTF-8"):
        class_names(["ant"], tmp_path / "latin.txt", PLACE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["Cat", "big_cat", "cat"], r"the classes 'Cat' and 'cat' are both 'cat' in a prompt"),
        (["big-cat", "big_cat"], r"'big-cat' and 'big_cat' are both 'big cat'.*class_names=FILE"),
        (["---", "cat"], r"the class '---' has no name that can be part of a prompt\. Rename it"),
        (["a\x07b", "cat"], r"has no name that can be part of a prompt"),
    ],
)
def test_equal_and_unreadable_names_are_refused(keys: list[str], message: str):
    with pytest.raises(InputError, match=message):
        class_names(keys, None, PLACE)
