"""Options of whole runs: what they change, and what they must not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.whole_runs import STEPS, Run, run


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def demo(results: Path) -> Run:
    """The demo with fewer steps."""
    return run(results, "experiment=demo", f"schedule.max_steps={STEPS}")


@pytest.mark.slow
def test_an_early_stop_evaluates_the_last_weights(results):
    # 40 images in batches of 20 are 2 steps an epoch.
    stopped = run(results, "method=adamw", "schedule.batch_size=20", "schedule.stop_loss=100")
    assert (stopped.metrics["steps"], stopped.metrics["stop_reason"]) == (2, "stop_loss")
    rows = stopped.rows("predictions.csv")
    assert any(row["zero_shot_confidence"] != row["confidence"] for row in rows)
    # Dense AdamW moves nearly every weight, and keeps two moments of each.
    metrics = stopped.metrics
    assert metrics["changed_parameters"] > 0.5 * metrics["trainable_parameters"]
    assert metrics["changed_parameters"] <= metrics["trainable_parameters"]
    state_mib = 2 * 4 * metrics["trainable_parameters"] / 2**20
    assert metrics["optimizer_state_mib"] == pytest.approx(state_mib, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_half_precision_runs(demo, results, precision):
    half = run(results, "experiment=demo", "schedule.max_steps=2", f"precision={precision}")
    assert half.metrics["precision"] == precision
    first = [done.column("history.csv", "loss")[0] for done in (half, demo)]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)


@pytest.mark.slow
def test_sampled_gradients_change_memory_and_nothing_else(results, demo):
    on, off = (
        run(
            results,
            "experiment=demo",
            f"schedule.max_steps={STEPS}",
            f"optimizer.sampled_gradients={value}",
        )
        for value in ("true", "false")
    )
    # The demo's matrices are so small that auto leaves them dense.
    assert demo.column("history.csv", "loss") == off.column("history.csv", "loss")
    losses = on.column("history.csv", "loss")
    assert losses == pytest.approx(off.column("history.csv", "loss"), abs=1e-4)
    assert on.metrics["peak_memory_mib"] < off.metrics["peak_memory_mib"]
    assert on.metrics["gradients_mib"] < 0.1 * off.metrics["gradients_mib"]
    for key in ("trainable_parameters", "optimizer_state_mib", "accuracy_percent"):
        assert on.metrics[key] == off.metrics[key]


@pytest.mark.slow
def test_memory_changes_memory_and_nothing_else(tmp_path, demo):
    fast, small = (
        run(tmp_path / memory, "experiment=demo", f"schedule.max_steps={STEPS}", f"memory={memory}")
        for memory in ("fast", "small")
    )
    # The measured memory differs, so these are three runs with three folders.
    assert len({fast.folder.name, small.folder.name, demo.folder.name}) == 3
    peaks = [done.metrics["activations_mib"] for done in (fast, demo, small)]
    assert peaks[1] < 0.8 * peaks[0]
    assert peaks[2] < 0.6 * peaks[0]
    losses = [done.column("history.csv", "loss") for done in (fast, demo, small)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)
    assert fast.metrics["zero_shot_accuracy_percent"] == small.metrics["zero_shot_accuracy_percent"]


@pytest.mark.slow
def test_accuracy_during_training_is_written_and_changes_nothing(results, demo):
    options = ("experiment=demo", f"schedule.max_steps={STEPS}", "evaluation.every_steps=2")
    watched = run(results, *options)
    rows = watched.rows("curve.csv")
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert float(rows[-1]["accuracy_percent"]) == watched.metrics["accuracy_percent"]
    assert watched.column("history.csv", "loss") == demo.column("history.csv", "loss")
    assert not (demo.folder / "curve.csv").exists()
    # Evaluation takes more memory than training here, and does not count.
    assert watched.metrics["peak_memory_mib"] == pytest.approx(demo.metrics["peak_memory_mib"])


def test_a_template_and_half_a_model_can_be_chosen(results, demo):
    chosen = run(
        results,
        "experiment=demo",
        "schedule.max_steps=1",
        "template='a drawn {}'",
        "adapter.encoder=vision",
        "adapter.position=top",
    )
    key = "zero_shot_accuracy_percent"
    assert chosen.metrics[key] != demo.metrics[key]
    assert 0 < chosen.metrics["trainable_parameters"] < demo.metrics["trainable_parameters"]


@pytest.fixture(scope="session")
def cut_eurosat(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Write EuroSAT's split file with only the first test images of each class."""
    split = json.loads((shared / "data" / "eurosat" / "split_zhou_EuroSAT.json").read_text())

    def cut(images_per_class: int) -> Path:
        kept: list[Any] = []
        for entry in split["test"]:
            if sum(entry[1] == other[1] for other in kept) < images_per_class:
                kept.append(entry)
        path = tmp_path_factory.mktemp("split") / "cut.json"
        path.write_text(json.dumps(split | {"test": kept}))
        return path

    return cut


def test_real_images_go_through_the_embedded_model(shared, cut_eurosat, tmp_path):
    real = run(
        tmp_path,
        "dataset=eurosat",
        f"data_root={shared / 'data'}",
        "shots=4",
        "backbone=tiny",
        "schedule.max_steps=3",
        f"dataset.split_file={cut_eurosat(10)}",
    )
    metrics = real.metrics
    assert (metrics["steps"], metrics["test_images"]) == (3, 100)
    assert len(real.rows("predictions.csv")) == 100
    assert metrics["changed_parameters"] <= metrics["trainable_parameters"]


@pytest.mark.slow
def test_a_random_vit_b32_goes_through_on_real_images(shared, cut_eurosat, tmp_path):
    real = run(
        tmp_path,
        "dataset=eurosat",
        f"data_root={shared / 'data'}",
        "shots=1",
        "backbone=vit_b32",
        "backbone.pretrained=null",
        "schedule.max_steps=1",
        f"dataset.split_file={cut_eurosat(1)}",
    )
    metrics = real.metrics
    assert metrics["trainable_parameters"] == 122_683_392
    # At most M entries of each matrix move in a step.
    assert 0 < metrics["changed_parameters"] <= 5e-4 * 122_683_392
    assert metrics["peak_memory_mib"] > metrics["weights_mib"] > 500
    values = json.loads((real.folder / "provenance.json").read_text())
    assert "random weights" in values["backbone"]
