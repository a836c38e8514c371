"""Runs that share cached features have the same results, and one run encodes the images."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.command import call

QUICK = ("evaluation.workers=0", "evaluation.batch_size=10", "schedule.max_steps=2", "shots=1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for a dataset of 24 test images."""
    root = tmp_path_factory.mktemp("data")
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for index in range(32):
        file = f"{index}.png"
        (root / "eurosat" / "2750").mkdir(parents=True, exist_ok=True)
        pixels = Image.effect_noise((32, 32), 20 + 3 * index).convert("RGB")
        pixels.save(root / "eurosat" / "2750" / file)
        name = ("train", "val")[index // 4] if index < 8 else "test"
        split[name].append([file, index % 2, ("ant", "bee")[index % 2]])
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    return ("dataset=eurosat", f"data_root={root}", *QUICK)


def _run(*arguments: object) -> tuple[dict[str, Any], list[dict[str, str]], str]:
    """Do a run; return its metrics, predictions and messages."""
    done = call(*arguments)
    assert done.code == 0, done.err
    folder = Path(done.out.rpartition("run folder")[2].strip())
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        predictions = [*csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, predictions, "\n".join(done.messages)


@pytest.mark.parametrize(
    "method", ["zero_shot", pytest.param("so adapter.encoder=text", marks=pytest.mark.slow)]
)
def test_cached_features_do_not_change_a_run(dataset, tmp_path, method):
    arguments = (*dataset, *f"method={method}".split())
    runs = [
        _run(*arguments, f"results_dir={tmp_path / 'without'}", "evaluation.cache_dir=null"),
        *(_run(*arguments, f"results_dir={tmp_path / 'with'}", "force=true") for _ in range(2)),
    ]
    assert [metrics["features_from_cache"] for metrics, *_ in runs] == [False, False, True]
    for metrics, predictions, messages in runs[1:]:
        assert predictions == runs[0][1]
        assert messages == ""
        for key in ("accuracy_percent", "peak_memory_mib", "final_loss", "fingerprint"):
            assert metrics[key] == runs[0][0][key], key
        assert metrics["evaluate_seconds"] > 0
    assert not (tmp_path / "without" / ".features").exists()


@pytest.mark.slow
def test_runs_of_one_backbone_encode_the_test_set_once(dataset, tmp_path):
    sweep = ("method=zero_shot", "seed=1", "seed=2 method=adamw", "template='{}'")
    runs = [_run(*dataset, *options.split(" ", 1), f"results_dir={tmp_path}") for options in sweep]
    assert [metrics["features_from_cache"] for metrics, *_ in runs] == [False, True, True, True]
    assert len([*(tmp_path / ".features").glob("*.safetensors")]) == 1


@pytest.mark.slow
def test_another_precision_has_its_own_features(dataset, tmp_path):
    arguments = (*dataset, "method=zero_shot", f"results_dir={tmp_path}")
    exact, *_ = _run(*arguments)
    half, *_ = _run(*arguments, "evaluation.precision=bf16")
    assert not half["features_from_cache"]
    assert (half["precision"], half["evaluation_precision"]) == ("fp32", "bf16")
    assert half["fingerprint"] != exact["fingerprint"]
    assert half["peak_memory_mib"] != exact["peak_memory_mib"]


@pytest.mark.slow
def test_a_run_continues_if_features_cannot_be_cached(dataset, tmp_path):
    place = "evaluation.cache_dir=/proc/no_features"
    metrics, _, messages = _run(*dataset, f"results_dir={tmp_path}", place)
    assert not metrics["features_from_cache"]
    assert messages.count("features are not cached") == 1
