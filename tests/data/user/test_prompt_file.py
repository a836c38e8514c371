"""Templates and class descriptions from files of every format, and bad files."""

import json
from pathlib import Path

import pytest

from so_clip.data.user.prompt_file import is_prompt_file, read_prompt_file
from so_clip.errors import InputError

TEMPLATES = ("a photo of a {}.", "a sketch of a {}")


def write(folder: Path, content: str, name: str = "prompts.json") -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "\ufeff# mine\na photo of a {}.\n\n  a sketch of a {}  \n"),
        ("t.json", json.dumps(TEMPLATES)),
        ("t.yaml", "- a photo of a {}.\n- a sketch of a {}\n"),
    ],
)
def test_templates_are_read(name: str, content: str, tmp_path: Path):
    found = read_prompt_file(write(tmp_path, content, name))
    assert found.templates == TEMPLATES
    assert found.of(["ant"]) is None


def test_the_suffix_decides_if_template_is_a_file():
    assert all(map(is_prompt_file, ("a.txt", "~/x y/b.JSON", "c.yaml", "d.yml")))
    assert not any(map(is_prompt_file, ("plain", "a {}.txt", "a photo of a {}.", "e.csv")))


def test_descriptions_find_their_classes_by_name_and_by_folder(tmp_path: Path):
    content = {"Big_Ant": "a {}, six legs", "b0": ["a bee", " a  {} in flight"], "*": "some {}"}
    found = read_prompt_file(write(tmp_path, json.dumps(content)))
    assert found.of(["big ant", "honey bee", "cat"], ["ants", "b0", "c0"]) == {
        "big ant": ("a big ant, six legs",),
        "honey bee": ("a bee", "a honey bee in flight"),
        "cat": ("some cat",),
    }


def test_classes_without_prompts_are_named(tmp_path: Path):
    found = read_prompt_file(write(tmp_path, '{"ant": "x", "beee": "y"}'))
    with pytest.raises(InputError, match=r"no prompts for 1 of 2 classes, such as 'bee'\. D"):
        found.of(["ant", "bee"])
    other = read_prompt_file(write(tmp_path, '{"*": "a {}"}'))
    with pytest.raises(InputError, match=r"no prompts for 2 of 2 classes"):
        other.of(["ant", "bee"])


def test_prompts_of_no_class_are_noted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {"ant": "x", "b0": "y", "beee": "z", "xyz": "z", "*": "some {}"}
    found = read_prompt_file(write(tmp_path, json.dumps(content)))
    for _ in range(2):
        assert found.of(["ant", "bee"], ["a0", "b0"]) is not None
    said = f"template={found.file}: 2 keys are not classes: 'beee'. Did you"
    assert capsys.readouterr().err == f"so_clip: {said} mean 'bee'? 'xyz'.\n"


def test_classes_that_yaml_reads_as_numbers_are_refused(tmp_path: Path):
    found = read_prompt_file(write(tmp_path, "010: a\n1: b\n'*': c\n", "p.yaml"))
    with pytest.raises(InputError, match=r'as the number 1, .*in quotes, such as "001"'):
        found.of(["001", "008", "010"])
    with pytest.raises(InputError, match=r'as the number 8, .*in quotes, such as "010"'):
        found.of(["1", "010"])
    assert found.of(["1", "8"]) == {"1": ("b",), "8": ("a",)}


BAD = {
    "no place": (
        '["a photo"]',
        r"template 1 must be text with one \{\} for the class name, not 'a",
    ),
    "two": ('["{} {}"]', r"template 1 must be text with one"),
    "number": ("[3]", r"template 1 must be text"),
    "empty list": ("[]", r"must hold templates, or a mapping"),
    "number alone": ("3", r"must hold templates, or a mapping"),
    "null": ('{"ant": null}', r"'ant': must have a prompt or a list of them, not None"),
    "none": ('{"ant": []}', r"'ant': must have a prompt or a list of them, not \[\]"),
    "blank": ('{"ant": [" "]}', r"'ant': prompt 1 is empty\. Delete it"),
    "braces": ('{"ant": ["{} {}"]}', r"'ant': prompt 1 must be text, with at most one \{\}"),
    "nested": ('{"ant": {"a": 1}}', r"'ant': must have a prompt"),
    "twice": ('{"big ant": "a", "Big_Ant": "b"}', r"'Big_Ant': repeats the class 'big ant'"),
    "too many": (json.dumps({"ant": ["a"] * 1001}), r"holds 1001 prompts, more than 1000"),
    "no json": ("{", r"is not JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_name_the_place(content: str, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        read_prompt_file(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("cat: a\ndog: b\ncat: c\n", "'cat'"),
        ('cat: a\n"cat": b\n', "'cat'"),
        ("1: a\n0x1: b\n", "1"),
        ("cat: {x: a, y: b, x: c}\n", "'x'"),
        ("- {x: a, x: b}\n", "'x'"),
    ],
)
def test_a_repeated_key_in_yaml_is_refused(content: str, key: str, tmp_path: Path):
    with pytest.raises(InputError, match=f"is not YAML: the key {key} is given twice"):
        read_prompt_file(write(tmp_path, content, "p.yaml"))


def test_yaml_words_that_are_not_text_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"True: is not a class name\. Put it in quotes"):
        read_prompt_file(write(tmp_path, "yes: a prompt\n", "p.yaml"))
    with pytest.raises(InputError, match=r"is not YAML: it holds an alias"):
        read_prompt_file(write(tmp_path, "a: &x [b]\nc: *x\n", "p.yaml"))
