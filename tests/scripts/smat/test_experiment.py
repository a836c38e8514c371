"""The parts of SMAT's experiment: its plan, its commands, tables and plots."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip("matplotlib", reason="the pictures need the pretrain extra")

from scripts.smat import commands, plan, plots, tables
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.meta.parse import meta_settings


def test_no_target_is_trained_on_and_rates_are_chosen_without_test_images():
    sets = plan.datasets(with_eurosat=True, with_textile=True)
    assert not {*sets.sources} & {*sets.targets}
    assert {"digits", "shapes"} <= {*sets.sources}
    assert {"eurosat_32", "textile", "flags"} <= {*sets.targets}
    assert all(name.endswith("_val") for name in sets.tuning)
    fewer = plan.datasets(with_eurosat=False, with_textile=False)
    assert {*sets.targets} - {*fewer.targets} == {"eurosat_32", "textile"}


@pytest.mark.parametrize("sizes", [plan.FULL, plan.SMALL], ids=["full", "small"])
def test_the_words_of_the_meta_trainings_are_accepted(sizes):
    for words in (plan.meta_words(sizes), plan.untrained_words()):
        settings = meta_settings([*plan.COMMON, *words, "sources=[digits]", "targets=[]"])
        assert settings.training.head == "prototype"
    assert settings.training.delta_lr == 0


@pytest.mark.slow
def test_every_contender_can_be_composed_and_has_rates_if_it_trains(tmp_path):
    contenders = [*plan.table_one(), *plan.table_two()]
    names = [contender.name for contender in contenders]
    assert len(names) == len({*names})
    for contender in contenders:
        checkpoint = [f"adapter.checkpoint={tmp_path}"] if contender.checkpoint else []
        words = [*plan.COMMON, *contender.words, *plan.EPISODES, *checkpoint]
        settings = from_config(compose([*words, "tasks=2", "dataset=digits"]))
        assert settings.trains == bool(contender.rates), contender.name


def test_methods_of_the_second_table_train_the_same_share_of_the_image_tower():
    for contender in plan.table_two():
        if contender.name == "dense":
            continue
        words = " ".join(contender.words)
        assert "adapter.encoder=vision" in words
        assert f"density_ratio={plan.DENSITY:g}" in words


def test_a_finished_command_is_skipped_and_a_failed_one_is_shown(tmp_path, monkeypatch):
    place = commands.Place(tmp_path / "data", tmp_path / "runs")
    folder = place.folder("tasks", "one", ("a=1",))
    assert folder != place.folder("tasks", "one", ("a=2",))
    folder.mkdir(parents=True)
    # Another program in place of Python: it takes the same arguments.
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(commands.Failed, match=r"a=1.*\nended with 1"):
        place.call(("-m",), ("a=1",), folder)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    place.call(("-m",), ("a=1",), folder)
    assert json.loads((folder / "seconds.json").read_text()) < 60
    monkeypatch.setattr(sys, "executable", "/bin/false")
    place.call(("-m",), ("a=1",), folder)
    finished = commands.Place(place.data, place.runs, only_finished=True)
    finished.call(("-m",), ("a=1",), folder)
    with pytest.raises(commands.Unfinished):
        finished.call(("-m",), ("a=2",), place.folder("tasks", "one", ("a=2",)))


def test_rows_of_tasks_have_paired_differences_and_stratified_intervals():
    base = plan.Contender("base", "Base", ())
    better = plan.Contender("better", "Better", (), (0.1,))
    scores = {
        ("base", "x"): [10, 20, 60],
        ("base", "y"): [50, 50, 50],
        ("better", "x"): [12, 24],
        ("better", "y"): [50, 60],
    }
    frame = pd.DataFrame(
        [
            {
                "contender": name,
                "dataset": dataset,
                "task": task,
                "accuracy_percent": float(value),
                "lr": 0.1,
                "trainable_parameters": 7,
                "train_seconds": 1.0,
            }
            for (name, dataset), values in scores.items()
            for task, value in enumerate(values)
        ]
    )
    rows = pd.DataFrame(tables.task_rows(frame, [base, better], reference="base"))
    rows = rows.set_index(["contender", "dataset"])
    assert rows.loc[("base", "x"), "tasks"] == 3
    assert rows.loc[("base", tables.MEAN), "accuracy_percent"] == 40
    assert rows.loc[("base", tables.MEAN), "minus_base_points"] == 0
    # The differences of the two common tasks are 2 and 4, and 0 and 10.
    assert rows.loc[("better", "x"), "minus_base_points"] == 3
    assert rows.loc[("better", tables.MEAN), "minus_base_points"] == 4
    welch = stats.ttest_ind([2, 4], [0, -10], equal_var=False).confidence_interval(0.95)
    interval = rows.loc[("better", tables.MEAN), "minus_base_interval"]
    assert interval == pytest.approx((welch.high - welch.low) / 2 / 2)
    # One target has Student's interval; equal tasks have none.
    student = stats.ttest_1samp([0, 10], 0).confidence_interval(0.95)
    interval = rows.loc[("better", "y"), "minus_base_interval"]
    assert interval == pytest.approx((student.high - student.low) / 2)
    assert rows.loc[("base", "y"), "interval_percent"] == 0


def test_rows_of_all_classes_have_the_spread_over_seeds():
    runs = pd.DataFrame(
        {
            "contender": "base",
            "dataset": ["x", "x", "y", "y"],
            "seed": [1, 2, 1, 2],
            "accuracy_percent": [10.0, 20.0, 30.0, 60.0],
            "lr": 0.1,
        }
    )
    *_, mean = tables.all_way_rows(runs, [plan.Contender("base", "Base", ())])
    assert (mean["dataset"], mean["seeds"], mean["accuracy_percent"]) == (tables.MEAN, 2, 30)
    assert mean["accuracy_percent_std"] == pytest.approx(np.std([20, 40], ddof=1))


def test_the_pictures_are_drawn(tmp_path):
    table = pd.DataFrame(
        {
            "contender": ["prototypes", "smat_text"],
            "title": ["Prototypes", "SMAT"],
            "dataset": tables.MEAN,
            "accuracy_percent": [40.0, 45.0],
            "interval_percent": [2.0, 3.0],
        }
    )
    plots.accuracies(table, tmp_path / "accuracies.png", "title")
    masks = pd.DataFrame(
        [
            {
                "expert": expert,
                "tensor": f"{role}{block}",
                "role": role,
                "block": block,
                "entries": 100,
                "kept_share": 0.1 + 0.02 * block + 0.01 * expert,
            }
            for expert in range(2)
            for role in ("attention_in", "mlp_up")
            for block in range(3)
        ]
    )
    overlap = pd.DataFrame([{"expert": 0, "other": 1, "overlap": 0.2}])
    plots.masks(masks, overlap, tmp_path / "masks.png")
    assert (tmp_path / "accuracies.png").stat().st_size > 1000
    assert (tmp_path / "masks.png").stat().st_size > 1000


def test_accuracies_of_tasks_are_those_of_each_task_and_not_of_their_run(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    lines = "task,accuracy_percent,steps,train_seconds\n0,10,3,1.5\n1,30,3,2.5\n"
    (run / "tasks.csv").write_text(lines, encoding="utf-8")
    metrics = {
        **{"dataset": "x", "seed": 1, "accuracy_percent": 20.0, "train_seconds": 4.0},
        **{"trainable_parameters": 7, "steps": 6, "settings": {"optimizer": {"lr": 0.1}}},
    }
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    place = commands.Place(tmp_path / "data", tmp_path / "runs")
    contest = commands.Contest(place, plan.SMALL, plan.datasets(False, False), {})
    monkeypatch.setattr(commands.Contest, "_run", lambda *_: [run])
    found = contest.tasks(plan.Contender("one", "One", (), (0.1,)), 0.1, count=2)
    assert list(found["accuracy_percent"]) == [10, 30]
    assert list(found["train_seconds"]) == [1.5, 2.5]
    assert set(found["trainable_parameters"]) == {7}
    assert set(found["lr"]) == {0.1}
