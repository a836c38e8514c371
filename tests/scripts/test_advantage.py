"""A small part of the experiment on SO's advantage, run twice."""

from dataclasses import replace

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the pre-training needs the pretrain extra")

from scripts import advantage
from scripts.digits import runs
from tests.helpers.scripts_in_process import InProcess


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(runs, "ProcessPoolExecutor", InProcess)
    for name, value in {
        "BASE": replace(advantage.BASE, steps=2, classes=2),
        "DENSITIES": (1e-2,),
        "MORE_DENSITIES": (1.0,),
        "START": (1,),
        "TRIES": 2,
        "TRIES_ELSEWHERE": 3,
        "VARIED": {"pretraining_pictures": (64,), "shots": (1,)},
    }.items():
        monkeypatch.setattr(advantage, name, value)


def test_points_differ_from_the_base_in_one_factor():
    base, *others = advantage.points(list(advantage.VARIED))
    assert base == advantage.BASE
    for point in others:
        changed = {name for name, value in vars(point).items() if value != getattr(base, name)}
        extra = {"pretraining_pictures"} if point.factor == "width" else set()
        assert changed == {"factor", point.factor} | extra
    # Widths have a point of the present width to be compared with.
    assert advantage.WIDTHS_AT in advantage.VARIED["pretraining_pictures"]


@pytest.mark.slow
def test_a_second_call_repeats_no_run_and_keeps_one_row_per_contender(small, tmp_path):
    arguments = ["--only", "pretraining_pictures", "--seeds", "1", "2", "--out", str(tmp_path)]
    advantage.main(arguments)
    table = pd.read_csv(tmp_path / "tables" / "digits_advantage.csv")
    # The second density exists only at the base point.
    assert list(table["contender"]) == ["adamw", "so", "so", "adamw", "so"]
    assert list(table["pretraining_pictures"]) == [102_400] * 3 + [64] * 2
    assert list(table["rates_tried"]) == [2] * 3 + [3] * 2
    # Other points start around the base point's best.
    assert table["lr_is_outermost"].iloc[:3].all()
    assert (tmp_path / "figures" / "digits_advantage.png").stat().st_size > 1000
    # The second point used other weights.
    assert table["zero_shot_accuracy_percent"].nunique() == 2
    made = sorted((tmp_path / "runs").rglob("*.json"))
    assert sum(path.name == "tiny.json" for path in made) == 1
    assert sum(path.name == "metrics.json" for path in made) == 3 * (2 + 2) + 2 * (3 + 2)
    times = [path.stat().st_mtime_ns for path in made]
    advantage.main(arguments)
    assert [path.stat().st_mtime_ns for path in made] == times


def test_differences_to_adamw_are_paired_by_seed():
    scores = advantage._paired(pd.Series([3.0, 5.0]) - pd.Series([2.0, 6.0]), False)
    assert scores == {
        "minus_adamw_points": 0.0,
        "minus_adamw_standard_error": pytest.approx(1.0),
        "seeds_ahead": 1,
    }


@pytest.mark.slow
def test_so_on_every_entry_is_adamw(small, tmp_path):
    with runs.pool(tmp_path) as workers:
        rows = advantage.compare(workers, advantage.BASE, [1], tmp_path, {})
    dense, control = rows[0], rows[-1]
    assert control["density_ratio"] == 1
    assert control["lr"] == dense["lr"]
    assert abs(control["accuracy_percent"] - dense["accuracy_percent"]) < 1
