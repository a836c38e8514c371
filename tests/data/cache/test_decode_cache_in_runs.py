"""Runs that share decoded test images decode them once, with results equal to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import call
from tests.helpers.made_datasets import write_dtd, write_eurosat

QUICK = ("evaluation.workers=2", "evaluation.batch_size=4", "schedule.max_steps=2", "shots=1")
TRAINS = ("method=so",)  # both towers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_eurosat(root)
    write_dtd(root)
    return root


def _arguments(root: Path, runs: Path, *more: str) -> list[str]:
    return ["dataset=eurosat", f"data_root={root}", f"results_dir={runs}", *QUICK, *TRAINS, *more]


def _run(root: Path, runs: Path, *more: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Do a run; return its metrics and the contents of its predictions."""
    done = call(*_arguments(root, runs, *more))
    assert done.code == 0, done.err
    assert done.messages == []
    folder = Path(done.out.rpartition("run folder")[2].strip())
    predictions = {path.name: path.read_bytes() for path in folder.glob("predictions*.csv")}
    return json.loads((folder / "metrics.json").read_text()), predictions


def _decoded(runs: Path) -> list[Path]:
    return sorted((runs / ".features" / "decoded").glob("*.npy"))


@pytest.mark.slow
def test_runs_with_and_without_the_cache_are_equal(root, tmp_path):
    more = ("transfer=[dtd]", "evaluation.every_steps=1")
    without, bare = _run(root, tmp_path / "without", *more, "evaluation.decode_cache_gib=0")
    first, second, third = (
        _run(root, tmp_path / "with", *more, *again) for again in ((), ("force=true",), ("seed=2",))
    )
    # 15 + 9 test images: zero-shot decodes them, two points of the curve and the end do not.
    assert [values["images_from_cache"] for values, _ in (first, second, third)] == [24, 24, 24]
    assert without["images_from_cache"] == 0
    for metrics, predictions in (first, second):
        assert predictions == bare
        for key in ("accuracy_percent", "final_loss", "run_fingerprint", "peak_memory_mib"):
            assert metrics[key] == without[key], key
    assert len(_decoded(tmp_path / "with")) == 2
    assert _decoded(tmp_path / "without") == []


@pytest.mark.slow
def test_a_damaged_file_changes_no_prediction(root, tmp_path):
    _, before = _run(root, tmp_path)
    [file] = _decoded(tmp_path)
    content = bytearray(file.read_bytes())
    content[-40_000:-39_000] = bytes(1000)
    file.write_bytes(content)
    done = call(*_arguments(root, tmp_path, "force=true"))
    assert done.code == 0
    [said] = done.messages
    assert " of its images have wrong checksums" in said
    folder = Path(done.out.rpartition("run folder")[2].strip())
    assert (folder / "predictions.csv").read_bytes() == before["predictions.csv"]


@pytest.mark.parametrize(
    "more",
    [
        ("method=zero_shot",),
        pytest.param(("adapter.encoder=text",), marks=pytest.mark.slow),
        pytest.param(("evaluation.cache_dir=null",), marks=pytest.mark.slow),
        pytest.param(
            ("dataset=digits", "shots=1", "evaluation.batch_size=500"), marks=pytest.mark.slow
        ),
    ],
)
def test_images_that_no_pass_reads_again_are_not_kept(root, tmp_path, more):
    metrics, _ = _run(root, tmp_path, *more)
    assert metrics["images_from_cache"] == 0
    assert _decoded(tmp_path) == []
