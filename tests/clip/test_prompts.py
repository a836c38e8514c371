import pytest

from so_clip.clip.prompts import class_prompts
from so_clip.errors import InputError


def test_class_names_fill_the_template() -> None:
    names = ["annual_crop_land", "Sea Lake", "{}", "50%"]
    assert class_prompts(names, ["a photo of a {}."]) == [
        "a photo of a annual crop land.",
        "a photo of a Sea Lake.",
        "a photo of a {}.",
        "a photo of a 50%.",
    ]


@pytest.mark.parametrize("template", ["a photo.", "{} and {}", "", "{0}", "{name}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        class_prompts(["cat"], [template])
