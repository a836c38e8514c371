"""Training reads no validation or test label: with all of them scrambled, the weights are the same.

Predictions and confidences are the same too. Validation labels fit one temperature after training,
and nothing else. The training images are drawn before. With split_protocol=clip_lora the published
draw takes the validation images first, so their number in each class changes the draw. Then the
labels are scrambled after the draw.
"""

import csv
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip import run
from so_clip.data.examples import Example
from so_clip.data.run_data import Data
from so_clip.sweep import job as main_module
from tests.helpers.command import call
from tests.helpers.made_datasets import write_eurosat

SPLIT_FILE = Path("eurosat", "split_zhou_EuroSAT.json")
STEPS = ("schedule.max_steps=3", "schedule.stop_loss=0")
METHODS = {
    "so": [*STEPS, "optimizer.density_ratio=0.05"],
    "clip_lora": [*STEPS],
    "coop": [*STEPS, "adapter.length=4"],
    "tip_adapter_f": [*STEPS],
    "two_stage": [*STEPS],
    "tip_adapter": [],
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data roots with the same images; the second has shuffled labels in val and test."""
    whole, scrambled = (tmp_path_factory.mktemp(name) for name in ("whole", "scrambled"))
    split = write_eurosat(whole)
    shutil.copytree(whole, scrambled, dirs_exist_ok=True)
    stream = random.Random(0)
    for part in ("val", "test"):
        named = [entry[1:] for entry in split[part]]
        stream.shuffle(named)
        split[part] = [[path, *pair] for (path, *_), pair in zip(split[part], named, strict=True)]
    (scrambled / SPLIT_FILE).write_text(json.dumps(split))
    return whole, scrambled


class Trained:
    """The weights at the end of a run, and the labels of its test images."""

    def __init__(
        self, root: Path, results: Path, monkeypatch: pytest.MonkeyPatch, options: Sequence[str]
    ) -> None:
        self.weights: dict[str, Tensor] = {}
        adapt = run.Run.adapt

        def keep_weights(work: run.Run, *arguments: Any) -> Any:
            done = adapt(work, *arguments)
            state = work.model.classifier.state_dict()
            self.weights = {name: value.clone() for name, value in state.items()}
            return done

        with monkeypatch.context() as patched:
            patched.setattr(run.Run, "adapt", keep_weights)
            done = call(
                "dataset=eurosat",
                "shots=2",
                "backbone=tiny",
                "evaluation.workers=0",
                f"data_root={root}",
                f"results_dir={results}",
                "evaluation.cache_dir=null",
                *options,
            )
        assert done.code == 0, done.err
        folder = Path(done.out.rpartition("run folder")[2].strip())
        with (folder / "predictions.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        self.labels = {row["path"]: row["label"] for row in rows}
        self.predictions = [(row["prediction"], row["confidence"]) for row in rows]
        self.train = json.loads((folder / "fewshot.json").read_text())["train"]


def _check(one: Trained, other: Trained) -> None:
    assert one.train == other.train
    assert one.labels != other.labels
    assert one.predictions == other.predictions
    assert one.weights
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


@pytest.mark.parametrize(
    "method",
    [name if name == "so" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_labels_of_val_and_test_in_the_split_file_do_not_change_weights(
    method, roots, tmp_path, monkeypatch
):
    options = [f"method={method}", *METHODS[method], "split_protocol=coop"]
    whole, scrambled = (
        Trained(root, tmp_path / str(place), monkeypatch, options)
        for place, root in enumerate(roots)
    )
    _check(whole, scrambled)


def _scrambled(data: Data) -> Data:
    stream = random.Random(1)

    def mixed(examples: Sequence[Example]) -> list[Example]:
        labels = [label for _, label in examples]
        stream.shuffle(labels)
        return [Example(path, label) for (path, _), label in zip(examples, labels, strict=True)]

    assert data.few_shot is not None
    splits = replace(data.splits, val=mixed(data.splits.val), test=mixed(data.splits.test))
    others = tuple(
        replace(item, splits=replace(item.splits, test=mixed(item.splits.test)))
        for item in data.others
    )
    few_shot = replace(data.few_shot, val=mixed(data.few_shot.val))
    return replace(data, splits=splits, few_shot=few_shot, others=others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("so", ["protocol=base_to_new"]),
        ("so", ["imbalance=0.5", "shots=3"]),
        ("coop", ["protocol=base_to_new"]),
        ("clip_lora", []),
    ],
)
def test_labels_scrambled_after_the_draw_do_not_change_weights(
    method, more, roots, tmp_path, monkeypatch
):
    options = [f"method={method}", *METHODS[method], *more]
    whole = Trained(roots[0], tmp_path / "whole", monkeypatch, options)
    gather = main_module.gather
    monkeypatch.setattr(
        main_module, "gather", lambda *args, **named: _scrambled(gather(*args, **named))
    )
    scrambled = Trained(roots[0], tmp_path / "scrambled", monkeypatch, options)
    _check(whole, scrambled)
