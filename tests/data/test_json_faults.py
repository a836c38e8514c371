"""Mistakes in JSON files are said in plain words, with the line."""

import json
from pathlib import Path

import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.plain_files import load_plain_json
from so_clip.data.user.class_names import class_names
from so_clip.data.user.prompt_file import read_prompt_file
from so_clip.errors import InputError

FAULTS = {
    "fence": ('```json\n{"a": "b"}\n```\n', "line 1 is a code fence, ```; delete such lines"),
    "fence at the end": ('{"a": "b"}\n```\n', "line 2 is a code fence"),
    "words before": ('Here is it:\n{"a": "b"}', "line 1 begins with 'Here is it:'; delete what"),
    "words after": ('{"a": "b"}\n\nDone!', "line 3 has 'Done!' after the end of the JSON text"),
    "comma in a mapping": ('{"a": "b",\n "c": "d",\n}', "line 2 has a comma before }; delete"),
    "comma in a list": ('{"a": ["b",\n"c",]}', "line 2 has a comma before ]; delete this comma"),
    "two commas": ('{"a": "b",\n, "c": "d"}', "line 2 has two commas"),
    "no comma": ('{"a": "b"\n "c": "d"}', 'line 2 needs a comma before \'"c": "d"}\''),
    "single quotes": ("{\n'a': 'b'}", "line 2 has the quote '; JSON takes the straight double"),
    "curly quotes": ("{\n“a”: “b”}", "line 2 has the quote “; JSON takes the straight double"),
    "no quotes": ("{\na: 1}", "line 2 has the key a without double quotes"),
    "comment": ('{"a": "b" // why\n}', "line 1 has a comment; JSON has none"),
    "python": ('{"a":\n None}', "line 2 has the word None; JSON writes null"),
    "dots": ('{"a": ["b",\n ...]}', "line 2 has ... in place of values"),
    "line break": ('{"a": "b\nc"}', "line 1 has a line break or a tab inside quotes"),
    "open text": (
        '{"a":\n "b}',
        "line 2 has a text that begins with a double quote and has no end",
    ),
    "cut short": (
        '{"a": {"b": 1},\n "c": 2\n',
        "line 2 is the last, but not all brackets are clos",
    ),
    "empty": ("\n", "it is empty"),
    "other": ('{"a" "b"}', "line 1, column 6: expecting ':' delimiter"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_said_with_their_line(text: str, message: str):
    for content in (text, text.encode(), text.encode("utf-16")):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            load_plain_json(content)
        assert str(caught.value).startswith(message)


def test_all_files_of_users_say_it(tmp_path: Path):
    file = tmp_path / "answer.json"
    file.write_text('{\n"cat": "a cat",\n}\n')
    message = r"answer\.json: .*is not JSON.*line 2 has a comma before \}; delete this comma"
    with pytest.raises(InputError, match=message):
        read_prompt_file(file)
    with pytest.raises(InputError, match=message):
        class_names(["cat", "dog"], file, tmp_path)
    with pytest.raises(InputError, match=message):
        read_split_file(file, load_card("eurosat"))


@pytest.mark.parametrize(("suffix", "what"), [("yaml", "YAML"), ("json", "JSON")])
def test_a_code_fence_is_no_part_of_a_file(suffix: str, what: str, tmp_path: Path):
    file = tmp_path / f"answer.{suffix}"
    file.write_text(f"```{suffix}\n{json.dumps({'cat': 'a cat'})}\n```\n")
    with pytest.raises(InputError, match=f"is not {what}: line 1 is a code fence"):
        read_prompt_file(file)


def test_templates_without_marks_of_markdown(tmp_path: Path):
    file = tmp_path / "templates.txt"
    file.write_text("# comment\n1. a photo of a {}.\n")
    assert read_prompt_file(file).templates == ("1. a photo of a {}.",)
    file.write_text("1. a photo of a {}.\n2. a sketch of a {}.\n")
    with pytest.raises(InputError, match=r"line 1: begins with '1\.'"):
        read_prompt_file(file)
