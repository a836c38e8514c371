"""Values of YAML files: those that do not fit their tags, and numbers with the base 60."""

import datetime

import pytest

from so_clip.data.plain_files import load_plain_yaml, read_values
from so_clip.errors import InputError


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int x", "!!float x", "!!map x"])
def test_a_value_that_does_not_fit_its_tag_is_refused(value, tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text(f"a: {value}\n")
    with pytest.raises(InputError, match=r"prompts\.yaml: is not YAML"):
        read_values(file, "template=prompts.yaml")


def test_numbers_with_the_base_60_stay_text():
    assert load_plain_yaml(b"[1:30, 190:20:30, 1:30.5, 12, 1.5, 2001-12-14]") == [
        "1:30",
        "190:20:30",
        "1:30.5",
        12,
        1.5,
        datetime.date(2001, 12, 14),
    ]
