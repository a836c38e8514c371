"""Runs of sampled tasks against the same tasks as ordinary runs, one by one."""

import csv
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from so_clip.build import load
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.config.tasks import task_seed
from so_clip.data.episodes.sampler import EpisodeDraw
from so_clip.data.examples import Splits
from so_clip.data.fewshot import FewShot
from so_clip.data.images import DigitArray
from so_clip.data.run_data import Data, gather
from so_clip.run import run
from so_clip.tasks.draws import draw_tasks
from so_clip.tasks.run import run_tasks
from tests.helpers.command import call

TASKS = ("dataset=digits", "shots=2", "tasks=3", "episodes.ways=[3,5]", "episodes.queries=6")
METHODS = {
    "zero_shot": "",
    "so": "schedule.max_steps=3 optimizer.density_ratio=0.05",
    "clip_lora": "schedule.max_steps=3 optimizer.lr=2e-3",
    "coop": "schedule.max_steps=3",
    "tip_adapter": "",
    "tip_adapter_f": "schedule.max_steps=3",
    "linear_probe": "schedule.max_steps=3",
    "taskres": "schedule.max_steps=3",
    "clap": "schedule.max_steps=3",
    "two_stage": "schedule.max_steps=4",
}
FAST = ("clip_lora",)


def _settings(place: Path, *words: str) -> Settings:
    common = ("evaluation.workers=0", "device=cpu", f"results_dir={place}")
    return from_config(compose([*common, *words]))


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "tasks.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def _as_data(task: EpisodeDraw, whole: Data, settings: Settings) -> Data:
    """Return a task as the data of an ordinary run, made without the code of tasks."""
    names = [whole.splits.class_names[label] for label in task.labels]
    lists = Splits([*task.few_shot], [], [*task.queries], names, dataset="digits")
    drawn = FewShot([*task.few_shot], [], "digits", 2, 1, "coop") if settings.adapts else None
    return Data(whole.card, lists, whole.images, drawn)


@pytest.mark.filterwarnings("ignore:the context has")
@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=[] if method in FAST else pytest.mark.slow) for method in METHODS],
)
def test_each_task_equals_an_ordinary_run_on_its_images(method, tmp_path):
    words = (f"method={method}", *METHODS[method].split())
    settings = _settings(tmp_path / "tasks", *TASKS, *words)
    data = gather(settings.data)
    result = run_tasks(settings, data)
    rows = _rows(result.folder)
    tasks = draw_tasks(settings, data.splits)
    assert [int(row["task"]) for row in rows] == [0, 1, 2]
    for task, row in zip(tasks, rows, strict=True):
        place = tmp_path / str(task.number)
        one = _settings(place, "shots=2", f"seed={task_seed(1, task.number)}", *words)
        metrics = run(one, _as_data(task, data, one), backbone=load(settings.backbone, 1)).metrics
        assert int(row["ways"]) == len(task.labels) in (3, 4, 5)
        assert int(row["few_shot_images"]) == 2 * len(task.labels)
        assert int(row["queries"]) == 6 * len(task.labels)
        assert int(row["steps"]) == metrics["steps"]
        for key in ("zero_shot_accuracy_percent", "accuracy_percent"):
            assert float(row[key]) == metrics[key], (task.number, key)
    _check_metrics(result.metrics, rows)


def _check_metrics(metrics: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Check means and intervals against scipy."""
    zero_shot, adapted = (
        [float(row[key]) for row in rows]
        for key in ("zero_shot_accuracy_percent", "accuracy_percent")
    )
    difference = [after - before for before, after in zip(zero_shot, adapted, strict=True)]
    for name, values in {
        "zero_shot_accuracy": zero_shot,
        "accuracy": adapted,
        "difference": difference,
    }.items():
        assert metrics[f"{name}_percent"] == pytest.approx(fmean(values))
        half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
        assert metrics[f"{name}_interval_percent"] == pytest.approx(half)
    assert metrics["tasks"] == 3
    assert metrics["steps"] == sum(int(row["steps"]) for row in rows)
    assert metrics["peak_memory_mib"] > 0


@pytest.mark.slow
def test_a_task_is_an_ordinary_run_on_a_csv_file_of_its_images(tmp_path):
    words = ("method=clip_lora", "schedule.max_steps=3", "optimizer.lr=2e-3")
    done = call(
        *TASKS, *words, "evaluation.workers=0", f"results_dir={tmp_path / 'tasks'}", "device=cpu"
    )
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "tasks").glob("digits-*-3tasks-2shot-seed1-*")
    row = _rows(folder)[0]
    drawn = call("draw", *TASKS)
    task = json.loads(drawn.out)["draws"][0]
    names = gather(_settings(tmp_path, *TASKS).data).splits.class_names
    images, lines = DigitArray(), ["path,label,split"]
    for split, key in (("train", "train"), ("test", "queries")):
        for path, label in task[key]:
            images.read(path).save(tmp_path / path)
            lines.append(f"{path},{names[task['labels'][label]]},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    # With coop's draw, classes with fewer images than shots keep all of them, in their order.
    one = call(
        *("dataset=csv", f"data_root={tmp_path}", "shots=3", "split_protocol=coop", *words),
        *(f"seed={task_seed(1, 0)}", "evaluation.workers=0", f"results_dir={tmp_path / 'one'}"),
    )
    assert one.code == 0, one.err
    (metrics,) = (
        json.loads(file.read_text()) for file in (tmp_path / "one").glob("*/metrics.json")
    )
    for key in ("zero_shot_accuracy_percent", "accuracy_percent"):
        assert float(row[key]) == metrics[key]


class Interrupting(DigitArray):
    """Digits that raise KeyboardInterrupt at the read with this number."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.reads = Counter[str]()
        self._last = last

    def read(self, path: str) -> Image.Image:
        self.reads[path] += 1
        if self.reads.total() == self._last:
            raise KeyboardInterrupt
        return super().read(path)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_finished_tasks(tmp_path):
    words = (*TASKS, "method=so", "schedule.max_steps=2", "evaluation.cache_dir=null")
    settings = _settings(tmp_path / "interrupted", *words)
    whole = _settings(tmp_path / "whole", *words)
    data = gather(settings.data)
    expected = run_tasks(whole, data)
    tasks = draw_tasks(settings, data.splits)
    encoded = len({path for task in tasks for path, _ in task.queries})
    first = len(tasks[0].few_shot) + len(tasks[0].queries)
    # In the second task.
    images = Interrupting(encoded + first + 1)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(settings, Data(data.card, data.splits, images, None))
    (folder,) = (tmp_path / "interrupted").glob("digits-*")
    kept = json.loads((folder / "finished_tasks.json").read_text())["tasks"]
    assert [task["task"] for task in kept] == [0]
    images = Interrupting(0)
    resumed = run_tasks(settings, Data(data.card, data.splits, images, None))
    assert images.reads.total() == encoded + sum(
        len(task.few_shot) + len(task.queries) for task in tasks[1:]
    )
    assert not (folder / "finished_tasks.json").exists()
    assert _without_seconds(resumed.metrics) == _without_seconds(expected.metrics)
    for row, other in zip(_rows(folder), _rows(expected.folder), strict=True):
        assert _without_seconds(row) == _without_seconds(other)
    assert run_tasks(settings, data).skipped


def _without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in values.items() if not key.endswith("_seconds")}
    left.pop("settings", None)
    return left
