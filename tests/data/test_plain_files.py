"""Values of a YAML file that do not fit their tags."""

import pytest

from so_clip.data.plain_files import read_values
from so_clip.errors import InputError


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int x", "!!float x", "!!map x"])
def test_a_value_that_does_not_fit_its_tag_is_refused(value, tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text(f"a: {value}\n")
    with pytest.raises(InputError, match=r"prompts\.yaml: is not YAML"):
        read_values(file, "template=prompts.yaml")
