"""Other class names come from a flag or a file, and impossible ones are refused."""

import json

import pytest

from so_clip.errors import InputError
from so_clip.predict.classes import other_classes


def test_names_come_from_the_flag_or_a_file(tmp_path):
    lines, listed = tmp_path / "names.txt", tmp_path / "names.json"
    lines.write_text("oak, red\n\nyew\n")
    listed.write_text(json.dumps(["oak, red", "yew"]))
    assert other_classes(None, None) is None
    assert other_classes("oak, scots pine,yew", None) == ["oak", "scots pine", "yew"]
    assert other_classes(None, lines) == other_classes(None, listed) == ["oak, red", "yew"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("oak", "gives 1 class"),
        ("oak,,yew", "one name is empty"),
        ("oak,Oak", "same prompt"),
        ("oak,a\nb", "must be one line"),
    ],
)
def test_names_that_make_no_prompt_are_refused(names, problem):
    with pytest.raises(InputError, match=f"--classes: .*{problem}"):
        other_classes(names, None)


def test_a_file_must_hold_a_list_and_goes_without_the_flag(tmp_path):
    file = tmp_path / "names.json"
    file.write_text('{"oak": 1}')
    with pytest.raises(InputError, match="must be a list of names"):
        other_classes(None, file)
    with pytest.raises(InputError, match="both given"):
        other_classes("a,b", file)
    with pytest.raises(InputError, match=r"--classes-file: .*none.txt cannot be read"):
        other_classes(None, tmp_path / "none.txt")
