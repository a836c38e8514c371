"""`rescore --wise-ft`: accuracies of mixed weights, against weights that the test mixes itself."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from so_clip.adapters import open_saved, restore, scale
from so_clip.errors import InputError
from so_clip.rescore.weight_space import parsed_weights
from tests.helpers.command import call
from tests.helpers.kept_runs import write_kept_run
from tests.helpers.made_datasets import write_dtd, write_eurosat

STRONG = ("optimizer.lr=0.01", "schedule.stop_loss=0", "schedule.max_steps=20", "shots=2")


def test_weights_are_numbers_from_0_to_1():
    assert parsed_weights("1,0.5,0,0.50") == (0.0, 0.5, 1.0)
    for text in ("2", "-0.1", "nan", "a", "", "0,,1", "inf"):
        with pytest.raises(InputError, match="is no number from 0 to 1"):
            parsed_weights(text)


def test_a_run_without_a_saved_adapter_has_no_curve_in_weight_space(tmp_path):
    run = write_kept_run(tmp_path / "runs")
    done = call("rescore", run, "--wise-ft", "0,0.5")
    assert (done.code, len(done.messages)) == (2, 1)
    assert f"{run}: the run has no adapter.safetensors" in done.messages[0]
    done = call("rescore", tmp_path / "runs", "--wise-ft", "0,0.5")
    assert done.code == 0
    assert f"no curve in weight space: {run}: the run has no adapter" in done.messages[0]
    done = call("rescore", run, "--data-root", tmp_path)
    assert (done.code, len(done.messages)) == (2, 1)
    assert "go with --wise-ft" in done.messages[0]


def _accuracy(run: Path, root: Path, weight: float) -> float:
    """Return the accuracy in percent of weights that are mixed tensor by tensor."""
    adapter, _ = open_saved(run)
    classifier = restore(scale(adapter, 0), folder=run).classifier
    adapted = restore(adapter, folder=run).classifier.state_dict()
    state = classifier.state_dict()
    assert any(not torch.equal(state[name], adapted[name]) for name in state)
    mixed = {
        name: torch.lerp(value, adapted[name], weight) if value.is_floating_point() else value
        for name, value in state.items()
    }
    classifier.load_state_dict(mixed)
    classifier.forget_classes()
    with (run / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    right = 0
    for row in rows:
        image = Image.open(root / "eurosat" / "2750" / row["path"]).convert("RGB")
        pixels_CHW = pil_to_tensor(classifier.backbone.pixels.square(image))
        with torch.inference_mode():
            right += int(classifier(pixels_CHW[None]).argmax()) == int(row["label"])
    return 100 * right / len(rows)


@pytest.mark.slow
def test_the_accuracies_are_those_of_mixed_weights(tmp_path):
    root, runs, out = tmp_path / "data", tmp_path / "runs", tmp_path / "out"
    write_eurosat(root)
    write_dtd(root)
    options = ("dataset=eurosat", f"data_root={root}", f"results_dir={runs}", *STRONG)
    assert call(*options, "method=so", "transfer=[dtd]", "evaluation.workers=0").code == 0
    (run,) = runs.glob("eurosat-*")
    done = call("rescore", run, "-o", out, "--wise-ft", "1,0,0.5,0.25")
    assert done.code == 0, done.err
    with (out / "curves.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["space"] == "weights"]
    assert [(row["test_set"], row["weight"]) for row in rows] == [
        (name, weight) for name in ("eurosat", "dtd") for weight in ("0.0", "0.25", "0.5", "1.0")
    ]
    for row in rows:
        if row["test_set"] == "eurosat":
            expected = _accuracy(run, root, float(row["weight"]))
            assert float(row["accuracy_percent"]) == pytest.approx(expected)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root, elsewhere)
    assert call("rescore", run, "--wise-ft", "0.5").code == 2
    assert call("rescore", run, "--wise-ft", "0.5", "--data-root", elsewhere).code == 0


@pytest.mark.slow
def test_prompts_have_no_curve_in_weight_space(tmp_path):
    write_eurosat(tmp_path / "data")
    options = ("dataset=eurosat", f"data_root={tmp_path / 'data'}", "schedule.max_steps=2")
    done = call(*options, f"results_dir={tmp_path / 'runs'}", "method=coop", "shots=1")
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").glob("eurosat-*")
    done = call("rescore", run, "--wise-ft", "0,0.5,1")
    assert (done.code, len(done.messages)) == (2, 1)
    assert "which has no sum with others" in done.messages[0]
