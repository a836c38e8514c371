"""Whole runs of the embedded model on the digits, from the command line to the run folder."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from so_clip.results.scores import scores
from tests.helpers.command import call
from tests.helpers.whole_runs import STEPS, Run, run

# Two runs with the same settings, machine and code may differ only in these.
TIMINGS = {"train_seconds", "evaluate_seconds"}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def demo(results: Path) -> Run:
    """The demo with fewer steps."""
    return run(results, "experiment=demo", f"schedule.max_steps={STEPS}")


@pytest.fixture(scope="session")
def zero_shot(results: Path) -> Run:
    return run(results, "method=zero_shot")


def test_the_folder_holds_what_it_should(demo):
    assert sorted(path.name for path in demo.folder.iterdir()) == [
        "adapter.safetensors",
        "changed.csv",
        "config.yaml",
        "fewshot.json",
        "history.csv",
        "logits.safetensors",
        "metrics.json",
        "per_class.csv",
        "predictions.csv",
        "provenance.json",
        "summary.txt",
    ]
    assert demo.folder.name.startswith("digits-tiny-so-4shot-seed1-")


def test_metrics_have_their_keys_units_and_types(demo):
    metrics = demo.metrics
    numbers = (
        "zero_shot_accuracy_percent",
        "accuracy_percent",
        "peak_memory_mib",
        "train_seconds",
        "weights_mib",
        "gradients_mib",
        "optimizer_state_mib",
        "activations_mib",
    )
    for key in numbers:
        assert isinstance(metrics[key], float), key
        assert metrics[key] > 0
    assert metrics["steps"] == STEPS
    assert metrics["stop_reason"] == "max_steps"
    assert (metrics["tested_on"], metrics["test_images"]) == ("test", 540)
    assert (metrics["dataset"], metrics["backbone"]) == ("digits", "tiny")
    assert (metrics["method"], metrics["shots"], metrics["seed"]) == ("so", 4, 1)
    assert len(metrics["split_sha256"]) == len(metrics["fewshot_sha256"]) == 64
    assert "tensor memory" in metrics["peak_memory_measures"]


def test_memory_adds_up_to_what_the_model_needs(demo):
    metrics = demo.metrics
    parts = ("weights_mib", "gradients_mib", "optimizer_state_mib", "activations_mib")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["peak_memory_mib"])
    trained_mib = 4 * metrics["trainable_parameters"] / 2**20
    assert metrics["weights_mib"] > trained_mib
    assert metrics["gradients_mib"] <= trained_mib
    # SO keeps at most 2 M entries a matrix, M = 2% of them, at 24 bytes each.
    assert metrics["optimizer_state_mib"] < 2 * 0.02 * 24 / 4 * trained_mib


def test_so_changes_some_entries_of_its_matrices_only(demo):
    metrics = demo.metrics
    # At most M entries of each matrix move in a step.
    at_most = STEPS * 0.02 * metrics["trainable_parameters"]
    assert 0 < metrics["changed_parameters"] <= at_most
    rows = demo.rows("changed.csv")
    assert list(rows[0]) == ["tensor", "parameters", "changed", "tower", "block", "role"]
    for key in ("trainable_parameters", "changed_parameters"):
        column = key.replace("trainable_", "").replace("_parameters", "")
        assert sum(int(row[column]) for row in rows) == metrics[key]
    for row in rows:
        assert 0 < int(row["changed"]) <= STEPS * max(1, int(0.02 * int(row["parameters"])))


def test_history_has_a_row_per_step_with_the_cosine_rate(demo):
    assert list(demo.rows("history.csv")[0]) == ["step", "loss", "lr"]
    assert demo.column("history.csv", "step") == [*range(1, STEPS + 1)]
    expected = [
        1e-6 + (2e-3 - 1e-6) * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)
    ]
    assert demo.column("history.csv", "lr") == pytest.approx(expected)
    losses = demo.column("history.csv", "loss")
    assert losses[-1] == demo.metrics["final_loss"]
    assert all(0 < loss < 20 for loss in losses)


def test_predictions_give_both_accuracies(demo):
    rows = demo.rows("predictions.csv")
    assert list(rows[0]) == [
        "path",
        "label",
        "label_name",
        "zero_shot_prediction",
        "zero_shot_prediction_name",
        "prediction",
        "prediction_name",
        "zero_shot_confidence",
        "confidence",
    ]
    names = {row["label"]: row["name"] for row in demo.rows("per_class.csv")}
    for key in ("label", "zero_shot_prediction", "prediction"):
        assert all(row[f"{key}_name"] == names[row[key]] for row in rows)
    assert len(rows) == len({row["path"] for row in rows}) == 540
    for key, column in (
        ("accuracy_percent", "prediction"),
        ("zero_shot_accuracy_percent", "zero_shot_prediction"),
    ):
        right = sum(row["label"] == row[column] for row in rows)
        assert demo.metrics[key] == pytest.approx(100 * right / 540)
    for column in ("confidence", "zero_shot_confidence"):
        assert all(0.1 <= value <= 1 for value in demo.column("predictions.csv", column))


def test_scores_follow_from_the_saved_predictions(demo):
    rows = demo.rows("predictions.csv")
    again = scores({column: [row[column] for row in rows] for column in rows[0]})
    assert len(again) == 6
    assert again == {key: demo.metrics[key] for key in again}
    classes = demo.rows("per_class.csv")
    assert list(classes[0]) == [
        "label",
        "name",
        "images",
        "zero_shot_accuracy_percent",
        "accuracy_percent",
    ]
    assert [row["name"] for row in classes][:3] == ["zero", "one", "two"]
    assert [int(row["label"]) for row in classes] == [*range(10)]
    for row in classes:
        of_class = [other for other in rows if other["label"] == row["label"]]
        right = sum(other["label"] == other["prediction"] for other in of_class)
        assert int(row["images"]) == len(of_class)
        assert float(row["accuracy_percent"]) == pytest.approx(100 * right / len(of_class))
    mean = sum(float(row["accuracy_percent"]) for row in classes) / 10
    assert demo.metrics["mean_class_accuracy_percent"] == pytest.approx(mean)


def test_the_draw_equals_the_draw_command_and_has_no_test_image(demo):
    done = call("draw", "dataset=digits", "shots=4", "seed=1")
    few_shot = json.loads((demo.folder / "fewshot.json").read_text())
    assert json.loads(done.out) == few_shot
    assert few_shot["sha256"] == demo.metrics["fewshot_sha256"]
    drawn = [path for path, _ in few_shot["train"] + few_shot["val"]]
    labels = sorted(label for _, label in few_shot["train"])
    assert labels == [label for label in range(10) for _ in range(4)]
    assert not {*drawn} & {row["path"] for row in demo.rows("predictions.csv")}


def test_config_yaml_equals_the_settings_in_the_metrics(demo):
    config = OmegaConf.to_container(OmegaConf.load(demo.folder / "config.yaml"))
    assert config == demo.metrics["settings"]
    assert config["optimizer"]["density_ratio"] == 0.02
    assert demo.metrics["run_fingerprint"].startswith(demo.folder.name.rpartition("-")[2])


def test_the_summary_shows_the_scores(demo):
    text, metrics = (demo.folder / "summary.txt").read_text(), demo.metrics
    for shown in (
        f"{metrics['zero_shot_accuracy_percent']:.2f} %",
        f"{metrics['accuracy_percent']:.2f} %",
        f"{metrics['peak_memory_mib']:.1f} MiB",
        f"{metrics['train_seconds']:.1f} s",
        str(demo.folder),
    ):
        assert shown in text


def test_provenance_names_the_weights_and_the_machine(demo):
    values = json.loads((demo.folder / "provenance.json").read_text())
    assert {"command", "commit", "versions", "hardware"} <= set(values)
    assert "experiment=demo" in values["command"]
    assert "experiment=demo" in values["overrides"]
    assert values["backbone"].startswith("tiny")
    assert len(values["backbone_weights_sha256"]) == 64
    assert values["split_file_sha256"] == demo.metrics["split_sha256"]


def _random_states() -> list[Any]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002


@pytest.mark.slow
def test_a_repeated_run_is_equal_whatever_the_global_rng_state(demo, tmp_path):
    random.seed(5)
    torch.manual_seed(5)
    before = _random_states()
    again = run(tmp_path, "experiment=demo", f"schedule.max_steps={STEPS}")
    assert _random_states() == before
    assert again.folder.name == demo.folder.name
    for name in ("history.csv", "predictions.csv", "fewshot.json"):
        assert (again.folder / name).read_text() == (demo.folder / name).read_text(), name
    differing = {key for key, value in again.metrics.items() if value != demo.metrics[key]}
    assert differing <= TIMINGS | {"settings"}
    settings = [done.metrics["settings"] | {"results_dir": None} for done in (again, demo)]
    for values in settings:
        del values["evaluation"]["cache_dir"]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_another_seed_is_another_draw_and_another_history(demo, results):
    other = run(results, "experiment=demo", f"schedule.max_steps={STEPS}", "seed=2")
    assert other.folder != demo.folder
    assert other.metrics["fewshot_sha256"] != demo.metrics["fewshot_sha256"]
    assert other.column("history.csv", "loss") != demo.column("history.csv", "loss")
    same = "zero_shot_accuracy_percent"
    assert other.metrics[same] == demo.metrics[same]


def test_zero_shot_trains_nothing(zero_shot, demo):
    metrics = zero_shot.metrics
    assert metrics["accuracy_percent"] == metrics["zero_shot_accuracy_percent"]
    assert metrics["accuracy_percent"] == demo.metrics["zero_shot_accuracy_percent"]
    assert metrics["trainable_parameters"] == metrics["changed_parameters"] == 0
    assert (metrics["steps"], metrics["train_seconds"]) == (0, 0)
    assert metrics["optimizer_state_mib"] == metrics["gradients_mib"] == 0
    assert 0 < metrics["weights_mib"] < metrics["peak_memory_mib"]
    assert sorted(path.name for path in zero_shot.folder.iterdir()) == [
        "adapter.safetensors",
        "config.yaml",
        "logits.safetensors",
        "metrics.json",
        "per_class.csv",
        "predictions.csv",
        "provenance.json",
        "summary.txt",
    ]


def test_the_meaning_of_auto_is_recorded(demo):
    config = OmegaConf.load(demo.folder / "config.yaml")
    cuda = torch.cuda.is_available()
    assert config.device == ("cuda" if cuda else "cpu")
    assert config.precision == config.evaluation.precision == demo.metrics["precision"]
    assert config.precision in (("bf16", "fp32") if cuda else ("fp32",))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_recorded(tmp_path):
    done = call("method=adamw", "optimizer.lr=1e30", f"results_dir={tmp_path}")
    assert done.code == 1
    (message,) = done.messages
    for part in ("nan at step 2 ", "lr 1e+30", "precision fp32", "optimizer.lr"):
        assert part in message
    assert "Traceback" not in done.err
    (folder,) = tmp_path.glob("[!.]*")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "config.yaml",
        "error.json",
        "fewshot.json",
        "history.csv",
        "provenance.json",
    ]
    rows = Run(folder).rows("history.csv")
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[1]["loss"] == "nan"
    listed = call("table", tmp_path)
    assert listed.code == 2
    assert "no finished run" in listed.err


def test_runs_become_tables(demo, zero_shot, results):
    done = call("table", results)
    assert done.code == 0
    assert f"{zero_shot.metrics['accuracy_percent']:.2f}" in done.out
    for name in ("Zero-shot CLIP", "SO"):
        assert f"| {'-' if name != 'SO' else '4'} | {name}" in done.cells
