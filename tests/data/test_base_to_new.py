"""Base and new classes, checked against CoOp's rule on a list of items."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.base_to_new import base_and_new, base_count
from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import draw_few_shot
from so_clip.errors import InputError


def _splits(classes: int, images: int = 6) -> Splits:
    """Lists in which classes take turns, the last one first."""

    def examples(split: str) -> list[Example]:
        return [
            Example(f"{split}/{label}_{index}.jpg", label)
            for index in range(images)
            for label in reversed(range(classes))
        ]

    names = [f"class {label}" for label in range(classes)]
    return Splits(examples("train"), examples("val"), examples("test"), names, dataset="small")


def _coops(items: list[Example], subsample: str) -> list[tuple[str, int]]:
    """CoOp's: sorted labels, the first ceil(n / 2) of them are base, each half counts from 0."""
    labels = sorted({label for _, label in items})
    middle = math.ceil(len(labels) / 2)
    selected = labels[:middle] if subsample == "base" else labels[middle:]
    return [(path, selected.index(label)) for path, label in items if label in selected]


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 10])
def test_halves_equal_those_of_coop(classes):
    splits = _splits(classes)
    base, new = base_and_new(splits)
    for name, half in (("base", base), ("new", new)):
        for split in ("train", "val", "test"):
            assert getattr(half, split) == _coops(getattr(splits, split), name)
        assert len(half.class_names) == len({label for _, label in half.test})
    assert base.class_names + new.class_names == splits.class_names
    assert len(base.class_names) == base_count(classes) == math.ceil(classes / 2)


@settings(max_examples=50)
@given(
    st.integers(2, 9), st.integers(1, 8), st.integers(0, 99), st.sampled_from(["coop", "clip_lora"])
)
def test_base_shots_equal_those_of_a_run_on_all_classes(classes, shots, seed, protocol):
    splits = _splits(classes)
    drawn = draw_few_shot(splits, shots, seed, protocol)
    base = drawn.of_base_classes(classes)
    assert (base.train, base.val) == (_coops(drawn.train, "base"), _coops(drawn.val, "base"))
    assert base.as_json()["classes"] == "base"
    assert "classes" not in drawn.as_json()
    assert base.sha256 != drawn.sha256


def test_one_class_has_no_halves():
    with pytest.raises(InputError, match=r"protocol=base_to_new: small has one class"):
        base_and_new(_splits(1))


def test_a_half_without_test_images_is_refused():
    splits = _splits(4)
    splits.test[:] = [example for example in splits.test if example.label < 2]
    with pytest.raises(
        InputError, match="no test image of the new classes, 'class 2' to 'class 3'"
    ):
        base_and_new(splits)
