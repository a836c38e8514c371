"""A run from Python equals the same run from the command line, bit for bit."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import so_clip
from so_clip.api.adapt import Result
from so_clip.data.images import to_tensor
from tests.helpers.command import call
from tests.helpers.made_datasets import write_class_folders
from tests.helpers.whole_runs import Run, run

NAMES = ("apple", "oak", "pine")
STEPS = {"schedule": {"max_steps": 3}, "evaluation": {"workers": 0}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "photos"
    write_class_folders(folder, NAMES, images=8)
    return folder


def check_equal(result: Result, command: Run, images: Path) -> None:
    """Compare scores, losses, the adapter, and the predictions of all test images."""
    for name in ("accuracy_percent", "zero_shot_accuracy_percent"):
        assert getattr(result, name) == command.metrics[name]
    assert result.losses == command.column("history.csv", "loss")
    saved = so_clip.adapters.load(command.folder / "adapter.safetensors")
    assert saved.about == result.about
    assert saved.added.keys() == result.adapter.added.keys()
    assert all(
        torch.equal(saved.added[name], value) for name, value in result.adapter.added.items()
    )
    assert saved.changes.keys() == result.adapter.changes.keys()
    for name, change in result.adapter.changes.items():
        assert all(map(equal, vars(change).values(), vars(saved.changes[name]).values())), name
    rows = command.rows("predictions.csv")
    found = result.predict([images / row["path"] for row in rows], top=1)
    assert [one.name for one in found] == [row["prediction_name"] for row in rows]


def equal(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("so", {"optimizer": {"T": 2}}),
        pytest.param("clip_lora", {}, marks=pytest.mark.slow),
        pytest.param("coop", {}, marks=pytest.mark.slow),
    ],
)
def test_scores_losses_and_adapter_of_a_folder(clip, photos, tmp_path, method, option):
    few = so_clip.few_shot(photos, shots=2, seed=3, template="a tree: {}.")
    result = so_clip.adapt(clip, few, method=method, **STEPS, **option)
    words = ["optimizer.T=2"] if option else []
    command = run(
        tmp_path,
        "dataset=folder",
        f"data_root={photos}",
        f"method={method}",
        "shots=2",
        "seed=3",
        "template='a tree: {}.'",
        "schedule.max_steps=3",
        "device=cpu",
        *words,
    )
    check_equal(result, command, photos)
    assert few.as_json() == json.loads((command.folder / "fewshot.json").read_text())


@pytest.mark.slow
def test_a_finished_run_of_the_command_is_read_back_from_its_folder(clip, tmp_path):
    command = run(tmp_path, "shots=1", "schedule.max_steps=3", "device=cpu")
    few = so_clip.few_shot("digits", shots=1)
    result = so_clip.adapt(clip, few, results_dir=tmp_path, **STEPS)
    assert result.folder == command.folder
    assert result.metrics == command.metrics  # also the seconds: nothing ran again
    assert result.losses == command.column("history.csv", "loss")


@pytest.mark.parametrize("protocol", ["clip_lora", "coop"])
def test_a_list_has_the_draw_of_the_command(photos, protocol):
    rows = [(file.relative_to(photos), file.parent.name) for file in sorted(photos.rglob("*.png"))]
    file = photos.parent / "list.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "kind"), *rows])
    options = {"split_protocol": protocol, "split_shares": [0.4, 0.3, 0.3], "label_column": "kind"}
    few = so_clip.few_shot(file, shots=3, seed=2, folder=photos, **options)
    drawn = call(
        *("draw", "dataset=csv", f"dataset.csv_file={file}", f"data_root={photos}"),
        *("shots=3", "seed=2", f"split_protocol={protocol}", "dataset.split_shares=[0.4,0.3,0.3]"),
        "dataset.label_column=kind",
    )
    assert few.as_json() == json.loads(drawn.out)
    assert few.train[0] == (few.as_json()["train"][0][0], "apple")


@pytest.mark.slow
def test_images_in_memory_equal_a_list_of_their_files(clip, photos, tmp_path):
    """Paths, PIL images, tensors and arrays; a list with splits has the same images and order."""
    files = {name: sorted((photos / name).iterdir()) for name in NAMES}
    parts = {"train": slice(0, 4), "val": slice(4, 6), "test": slice(6, 8)}
    rows = [
        (file, name, split)
        for split, part in parts.items()
        for name in NAMES
        for file in files[name][part]
    ]
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    command = run(
        tmp_path / "runs",
        *("dataset=csv", f"dataset.csv_file={tmp_path / 'list.csv'}", f"data_root={photos}"),
        *("shots=2", "schedule.max_steps=3", "device=cpu"),
    )
    results = []
    for form in (str, Path, Image.open, opened_tensor, opened_array):
        given = {
            split: {name: [form(file) for file in files[name][part]] for name in NAMES}
            for split, part in parts.items()
        }
        few = so_clip.few_shot(given["train"], shots=2, val=given["val"], test=given["test"])
        results.append(so_clip.adapt(clip, few, **STEPS))
    pairs = {part: [row[:2] for row in rows if row[2] == part] for part in parts}
    few = so_clip.few_shot(pairs["train"], shots=2, val=pairs["val"])
    assert few.train == [
        (str(photos / row[0]), few.class_names[row[1]])
        for row in json.loads((command.folder / "fewshot.json").read_text())["train"]
    ]
    for result in results:
        assert result.losses == command.column("history.csv", "loss")
        assert result.accuracy_percent == command.metrics["accuracy_percent"]
        assert result.about.temperature == command.metrics["temperature"]


def opened_tensor(file: Path) -> torch.Tensor:
    return to_tensor(Image.open(file))


def opened_array(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.mark.slow
def test_zero_shot_draws_and_trains_nothing(clip, photos, tmp_path):
    few = so_clip.few_shot(photos)
    result = so_clip.adapt(clip, few, method="zero_shot", results_dir=tmp_path)
    command = run(tmp_path, "dataset=folder", f"data_root={photos}", "method=zero_shot")
    assert command.folder == result.folder
    assert result.losses == []
    images = sorted(photos.rglob("*.png"))
    expected = clip.predict(images, result.class_names, top=1)
    assert [one.name for one in result.predict(images)] == [one.name for one in expected]
