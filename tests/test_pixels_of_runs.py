"""Runs take images as their model does, and share no cache with runs of other pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command import call
from tests.helpers.whole_runs import Run, run

SQUASH = ("backbone.resize_mode=squash", "backbone.interpolation=bilinear")


def _write(folder: Path, squashed: bool) -> None:
    """Write wide images of two classes, or the squares that a model gets from them."""
    rng = np.random.default_rng(0)
    for index in range(16):
        pixels = rng.integers(0, 256, (30, 70, 3), dtype=np.uint8)
        pixels[:, 35:] = (pixels[:, 35:] * 0.3).astype(np.uint8)
        image = Image.fromarray(pixels)
        if squashed:
            image = image.resize((32, 32), Image.Resampling.BILINEAR)
        file = folder / ("one" if index % 2 else "two") / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    _write(folder / "wide", squashed=False)
    _write(folder / "square", squashed=True)
    return folder


def _zero_shot(results_dir: Path, root: Path, *words: str) -> Run:
    return run(results_dir, "method=zero_shot", "dataset=folder", f"data_root={root}", *words)


def _confidences(done: Run) -> list[float]:
    return done.column("predictions.csv", "confidence")


def test_a_run_that_squashes_images_equals_a_run_on_their_squares(
    images: Path, tmp_path: Path
) -> None:
    done = _zero_shot(tmp_path, images / "wide", *SQUASH)
    square = _zero_shot(tmp_path, images / "square")
    assert len(set(_confidences(done))) > 2
    assert _confidences(done) == _confidences(square)
    record = json.loads((done.folder / "provenance.json").read_text())["backbone_pixels"]
    assert (record["resize_mode"], record["interpolation"]) == ("squash", "bilinear")


@pytest.mark.slow
def test_decoded_images_and_saved_adapters_keep_their_pixels(images: Path, tmp_path: Path) -> None:
    def trained(*words: str) -> Run:
        words = ("shots=2", "schedule.max_steps=2", *words)
        return run(tmp_path, "dataset=folder", f"data_root={images / 'wide'}", *words)

    done, plain = trained(*SQUASH), trained()
    assert len([*tmp_path.glob(".features/*.safetensors")]) == 2
    assert len([*tmp_path.glob(".features/decoded/*.npy")]) == 2
    assert _confidences(trained(*SQUASH, "force=true")) == _confidences(done)
    assert _confidences(done) != _confidences(plain)
    outcome = call("evaluate", done.folder, "evaluation.workers=0")
    assert outcome.code == 0, outcome.err
    again = Run(Path(outcome.out.rpartition("run folder")[2].strip()))
    assert _confidences(again) == _confidences(done)
    assert "resize_mode: squash" in (again.folder / "config.yaml").read_text()
