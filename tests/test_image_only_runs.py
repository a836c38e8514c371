"""Whole runs on an image model of timm: no zero-shot scores anywhere, and nothing else missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from so_clip.report.read import read_runs
from so_clip.report.significance import compare
from so_clip.report.tables import make_tables
from tests.helpers.command import call
from tests.helpers.image_models import CHOICE, NAME, narrow
from tests.helpers.whole_runs import Run, run

ZERO_SHOT = ("accuracy_percent", "mean_class_accuracy_percent", "temperature")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with narrow():
        yield tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def done(results: Path) -> Run:
    return run(results, "method=prototypes", "shots=4", *CHOICE)


def test_a_run_of_prototypes_has_no_zero_shot_scores(done: Run) -> None:
    metrics, rows = done.metrics, done.rows("predictions.csv")
    assert [metrics[f"zero_shot_{key}"] for key in ZERO_SHOT] == [None] * 3
    right = [row["label"] == row["prediction"] for row in rows]
    assert metrics["accuracy_percent"] == pytest.approx(100 * sum(right) / len(right))
    assert metrics["accuracy_percent"] > 30  # 10 classes; random weights tell digits apart
    assert (metrics["backbone"], metrics["text_memory"]) == (NAME, None)
    assert metrics["temperature"] > 0
    files = ("predictions.csv", "per_class.csv")
    assert not [name for file in files for name in done.rows(file)[0] if "zero_shot" in name]
    summary = (done.folder / "summary.txt").read_text()
    assert "zero-shot accuracy  -\n" in summary


def test_its_adapter_gives_the_same_predictions(done: Run, results: Path) -> None:
    outcome = call("evaluate", done.folder, "evaluation.workers=0")
    assert outcome.code == 0, outcome.err
    again = Run(Path(outcome.out.rpartition("run folder")[2].strip()))
    assert again.rows("predictions.csv") == done.rows("predictions.csv")
    assert again.metrics["zero_shot_accuracy_percent"] is None


def test_another_run_takes_the_features_from_the_cache(done: Run, results: Path) -> None:
    more = run(results, "method=prototypes", "shots=8", *CHOICE)
    assert not done.metrics["features_from_cache"]
    assert more.metrics["features_from_cache"]


def test_tables_and_tests_of_significance_have_no_zero_shot_row(done: Run, results: Path) -> None:
    short = ("schedule.max_steps=3", "schedule.batch_size=8")
    run(results, "method=linear_probe", "shots=4", *short, *CHOICE)
    runs = read_runs(results)
    blocks = [block for table in make_tables(runs) for block in table.blocks]
    titles = {row.title for block in blocks for row in block.rows}
    assert titles == {"Prototypes", "Linear probe"}
    pairs, remarks = compare(runs)
    assert {*pairs["first"], *pairs["second"]} == titles
    assert not remarks


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", ["zero_shot", "so", "tip_adapter", "coop"])
def test_methods_that_need_text_are_refused_before_any_work(method: str, tmp_path: Path) -> None:
    outcome = call(f"method={method}", "backbone=dino_s16", f"results_dir={tmp_path}")
    assert outcome.code == 2
    (message,) = outcome.messages
    assert f"method={method}: its classes come from text" in message
    assert "method=prototypes" in message
    assert not [*tmp_path.iterdir()]


def test_an_export_is_refused(done: Run, tmp_path: Path) -> None:
    outcome = call("export", done.folder, "--to", "open_clip", tmp_path / "model.pt")
    assert outcome.code == 2
    assert "has no text tower" in outcome.err
    assert not [*tmp_path.iterdir()]
