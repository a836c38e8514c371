"""Runs of sampled tasks in tables: apart from other runs, with their intervals."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from so_clip.report.formats.text import tidy, to_csv, to_markdown
from so_clip.report.read import Runs, read_runs
from so_clip.report.significance import compare
from so_clip.report.table import Table
from so_clip.report.tables import make_tables
from tests.helpers.report_runs import write_run


def _write(root: Path, name: str, accuracy: float, width: float, **changes: object) -> None:
    values = {"method": "so", "method_title": "SO", **changes}
    episodes = {"ways": [5, 50], "queries": 10, "images": 100, "varied_shots": False}
    folder = write_run(root, name, **values)
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["settings"] |= {"tasks": 600, "episodes": episodes}
    metrics |= {
        "tasks": 600,
        "accuracy_percent": accuracy,
        "accuracy_interval_percent": width,
        "zero_shot_accuracy_percent": 40.0 + metrics["seed"],
        "zero_shot_accuracy_interval_percent": 1.0,
        "difference_percent": accuracy - 41.0,
        "difference_interval_percent": 0.5,
    }
    file.write_text(json.dumps(metrics))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    for seed in (1, 2):
        write_run(tmp_path, f"all-{seed}", seed=seed, accuracy_percent=60.0)
        for dataset, accuracy, width in (("dtd", 70.0, 0.6), ("eurosat", 80.0, 0.8)):
            name = f"{dataset}-{seed}"
            _write(tmp_path, name, accuracy + seed, width, seed=seed, dataset=dataset)
    _write(tmp_path, "worse", 30.0, 2.0, dataset="dtd", method="adamw", method_title="AdamW")
    return read_runs(tmp_path)


def _tables(runs: Runs) -> dict[str, Table]:
    return {table.measure.name: table for table in make_tables(runs)}


def test_they_have_a_table_of_their_own(runs):
    tables = _tables(runs)
    assert runs.counted == "2 runs, 5 runs of sampled tasks"
    for name, table in tables.items():
        found = {column.key for column in table.columns} & {"dtd", "eurosat"}
        assert bool(found) == (name == "tasks"), name
    assert tables["tasks"].caption.endswith("tiny: mean ± 95 % interval over tasks")
    assert len(compare(runs)[0]) == 0


def test_cells_have_the_interval_of_independent_runs(runs):
    (block,) = _tables(runs)["tasks"].blocks
    rows = {row.name: row.cells for row in block.rows}
    so = rows["SO (tasks=600)"]
    assert (so["dtd"].mean, so["dtd"].runs) == (71.5, 2)
    assert so["dtd"].std == pytest.approx(0.6 / math.sqrt(2))
    assert so["average"].std == pytest.approx(math.hypot(0.6, 0.8) / math.sqrt(2) / 2)
    assert rows["AdamW (tasks=600)"]["dtd"].std == 2.0
    assert rows["Zero-shot CLIP"]["dtd"].mean == 41.5


def test_files_name_the_interval(runs):
    table = _tables(runs)["tasks"]
    rows = [*csv.DictReader(io.StringIO(to_csv(tidy([table]))))]
    assert "std" not in rows[0]
    row = next(row for row in rows if row["method"] == "adamw")
    assert (float(row["mean"]), float(row["interval"])) == (30.0, 2.0)
    assert "30.00 ± 2.00" in to_markdown(table)


def test_a_run_of_tasks_alone_makes_a_table(tmp_path):
    _write(tmp_path, "one", 70.0, 0.6)
    assert [*_tables(read_runs(tmp_path))] == ["tasks"]
