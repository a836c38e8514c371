"""A draw of more images than a class has gives one note: how many classes, and what happens."""

import json
from pathlib import Path

import pytest

from so_clip.data.run_data import gather
from tests.helpers.choices import data_choice
from tests.helpers.made_datasets import write_eurosat


def _draw(root: Path, shots: int, **options: str) -> None:
    gather(data_choice("eurosat", root, shots=shots, **options))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a dataset with six training images per class, but two of `bee`."""
    split = write_eurosat(tmp_path, ["ant", "bee", "cat"])
    bees = [entry for entry in split["train"] if entry[2] == "bee"]
    split["train"] = [entry for entry in split["train"] if entry not in bees[2:]]
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    return tmp_path


def test_enough_images_give_no_note(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _draw(root, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("shots", "count"), [(3, 1), (6, 1), (7, 3)])
def test_more_shots_than_images_are_noted(
    shots: int, count: int, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _draw(root, shots)
    example = "'bee' with 2" if count == 1 else "'ant' with 6"
    assert capsys.readouterr().err == (
        f"so_clip: shots={shots}: {count} of 3 classes have fewer training images than that, such "
        f"as {example}. Some of their images are drawn more than once.\n"
    )


def test_coop_draws_each_image_of_a_small_class_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _draw(root, 6, split_protocol="coop")
    assert capsys.readouterr().err.endswith("All of their images are drawn, each once.\n")


def test_half_of_the_classes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _draw(root, 7, protocol="base_to_new")
    assert "2 of 2 classes have fewer training images" in capsys.readouterr().err
