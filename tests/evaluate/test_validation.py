"""The drawn validation images give a run its temperature, and change nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from so_clip.results.calibration import fit_temperature
from so_clip.results.logits_file import LOGITS_FILE, read_logits
from tests.helpers.command import Outcome, call
from tests.helpers.made_datasets import write_eurosat

QUICK = ("dataset=eurosat", "evaluation.workers=0", "schedule.max_steps=2", "shots=2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    write_eurosat(place)
    return place


def _run(root: Path, results: Path, *options: str) -> tuple[Path, dict[str, Any], Outcome]:
    done = call(*QUICK, f"data_root={root}", f"results_dir={results}", *options)
    assert done.code == 0, done.err
    folder = Path(done.out.rpartition("run folder")[2].strip())
    return folder, json.loads((folder / "metrics.json").read_text()), done


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder, metrics, done = _run(root, tmp_path_factory.mktemp("runs"))
    assert done.messages == []
    return folder, metrics


def test_the_temperature_is_fitted_on_the_drawn_validation_images(whole):
    folder, metrics = whole
    kept = read_logits(folder / LOGITS_FILE)
    drawn = json.loads((folder / "fewshot.json").read_text())["val"]
    assert kept.validation is not None
    assert kept.validation.label_V.tolist() == [label for _, label in drawn]
    assert metrics["calibrated_on"] == kept.calibrated_on == len(drawn) > 0
    for name, model in kept.validation.logits.items():
        assert metrics[f"{name}temperature"] == fit_temperature(model, kept.validation.label_V)
        assert metrics[f"{name}temperature"] == kept.temperatures[name]
    assert (kept.validation.logits[""] != kept.validation.logits["zero_shot_"]).any()
    assert kept.run_fingerprint == metrics["run_fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["unreadable", "missing", "no list"])
def test_without_its_validation_images_a_run_has_no_temperature_and_a_note_says_so(
    damage, root, whole, tmp_path
):
    folder, metrics = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    options = []
    if damage == "no list":
        split = json.loads((root / "eurosat" / "split_zhou_EuroSAT.json").read_text())
        (tmp_path / "mine.json").write_text(json.dumps(split | {"val": []}))
        options = [f"dataset.split_file={tmp_path / 'mine.json'}", "split_protocol=coop"]
        reason = "the draw has no validation image."
    else:
        val, _ = json.loads((folder / "fewshot.json").read_text())["val"][0]
        file = tmp_path / "eurosat" / "2750" / val
        file.unlink() if damage == "missing" else file.write_bytes(b"no image")
        reason = f"a validation image cannot be used: {file}"
    other, found, done = _run(tmp_path, tmp_path / "runs", *options)
    (message,) = done.messages
    assert message.startswith(f"so_clip: no temperature: {reason}")
    assert (found["temperature"], found["zero_shot_temperature"]) == (None, None)
    assert found["calibrated_on"] == 0
    kept = read_logits(other / LOGITS_FILE)
    assert kept.validation is None
    assert kept.temperatures == {"zero_shot_": None, "": None}
    if not options:
        assert found["final_loss"] == metrics["final_loss"]
        before = read_logits(folder / LOGITS_FILE)
        assert np.array_equal(kept.models[""].logits_NK, before.models[""].logits_NK)


@pytest.mark.slow
def test_without_logits_and_adapter_the_validation_images_are_not_read(root, whole, tmp_path):
    folder, _ = whole
    other, found, done = _run(root, tmp_path, "evaluation.keep_logits=false", "save=false")
    assert done.messages == []
    assert not [*other.glob("*.safetensors")]
    assert (found["temperature"], found["calibrated_on"]) == (None, 0)
    assert (other / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
