"""Comparisons over seeds and over images whose results are known."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from so_clip.report.pairs import summary
from so_clip.report.read import read_runs
from so_clip.report.significance import MAX_ROWS, compare
from so_clip.report.tables import AVERAGE
from tests.helpers.report_runs import write_predictions, write_run

N = 40


def _write(
    root: Path, method: str, seed: int, right: list[bool], dataset: str = "dtd", **more: Any
) -> Path:
    folder = write_run(
        root,
        f"{dataset}-{method}-{seed}",
        dataset=dataset,
        method=method,
        method_title=method.upper(),
        seed=seed,
        accuracy_percent=100 * sum(right) / len(right),
        **more,
    )
    write_predictions(folder, right)
    return folder


def _rows(comparisons: pd.DataFrame, test: str, dataset: str = "dtd") -> list[dict[str, Any]]:
    chosen = (comparisons["test"] == test) & (comparisons["dataset"] == dataset)
    return comparisons[chosen].to_dict("records")


def _first(count: int) -> list[bool]:
    return [at < count for at in range(N)]


def test_one_seed_gives_mcnemars_test(tmp_path):
    """Only A is correct on 9 images, only B on 2."""
    _write(tmp_path, "a", 1, [at < 20 or at >= 38 for at in range(N)])
    _write(tmp_path, "b", 1, [9 <= at < 22 or at >= 38 for at in range(N)])
    comparisons, remarks = compare(read_runs(tmp_path))
    (row,) = _rows(comparisons, "images")
    assert (row["first"], row["second"], row["seeds"]) == ("A", "B", 1)
    assert (row["wins"], row["losses"]) == (9, 2)
    assert row["p"] == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert row["difference_points"] == pytest.approx(100 * 7 / N)
    assert remarks == []
    (over_seeds,) = _rows(comparisons, "seeds")
    assert pd.isna(over_seeds["p"])  # one seed has no spread


def test_an_image_counts_once_for_all_seeds(tmp_path):
    for seed in (1, 2, 3):
        _write(tmp_path, "a", seed, _first(20))
        _write(tmp_path, "b", seed, _first(14))
    (row,) = _rows(compare(read_runs(tmp_path))[0], "images")
    assert (row["seeds"], row["wins"], row["losses"]) == (3, 6, 0)
    assert row["p"] == pytest.approx(2 / 2**6)


def test_the_method_with_more_correct_seeds_wins_an_image(tmp_path):
    """Image 0: 2 to 1. Image 1: 1 to 1. Image 2: 0 to 2."""
    a = ([True, True, False], [True, False, False], [False, False, False])
    b = ([False, False, True], [True, True, True], [False, False, False])
    for seed in range(3):
        _write(tmp_path, "a", seed, a[seed])
        _write(tmp_path, "b", seed, b[seed])
    (row,) = _rows(compare(read_runs(tmp_path))[0], "images")
    assert (row["wins"], row["losses"]) == (1, 1)


def test_seeds_are_paired_and_averaged_over_datasets(tmp_path):
    accuracies = {
        ("a", "dtd"): (20, 24, 28),
        ("b", "dtd"): (18, 20, 26),
        ("a", "eurosat"): (30, 31, 35),
        ("b", "eurosat"): (31, 27, 30),
    }
    for (method, dataset), right in accuracies.items():
        for seed, count in enumerate(right):
            _write(tmp_path, method, seed, _first(count), dataset)
    comparisons, _ = compare(read_runs(tmp_path))
    scale = 100 / N
    for dataset, differences in (
        ("dtd", [2, 4, 2]),
        ("eurosat", [-1, 4, 5]),
        (AVERAGE, [0.5, 4, 3.5]),
    ):
        (row,) = _rows(comparisons, "seeds", dataset)
        expected = stats.ttest_1samp(differences, 0).pvalue
        assert row["p"] == pytest.approx(expected)
        assert row["difference_points"] == pytest.approx(scale * sum(differences) / 3)
    (pair,) = summary(comparisons).to_dict("records")
    assert pair["seeds"] == 3
    assert pair["difference (points)"] == pytest.approx(scale * 8 / 3)


def test_runs_with_uneven_shots_are_not_compared(tmp_path):
    _write(tmp_path, "a", 1, _first(20))
    _write(tmp_path, "b", 1, _first(30), imbalance=0.5)
    assert compare(read_runs(tmp_path))[0].empty


def test_only_shared_seeds_are_compared(tmp_path):
    for seed in (1, 2, 3):
        _write(tmp_path, "a", seed, _first(20 + seed))
    for seed in (2, 3, 4):
        _write(tmp_path, "b", seed, _first(18 + 2 * seed))
    comparisons, _ = compare(read_runs(tmp_path))
    assert [row["seeds"] for row in comparisons.to_dict("records")] == [2, 2]


def test_different_images_or_another_order_are_not_compared(tmp_path):
    _write(tmp_path, "a", 1, _first(20))
    other = _write(tmp_path, "b", 1, _first(10))
    write_predictions(other, _first(10), paths=[f"{N - at}.png" for at in range(N)])
    comparisons, remarks = compare(read_runs(tmp_path))
    assert _rows(comparisons, "images") == []
    (remark,) = remarks
    assert "not tested on the same images in the same order" in remark
    assert str(other) in remark


@pytest.mark.parametrize("content", [None, "", "path,label\n1.png,0\n", "path,label,predic"])
def test_unreadable_predictions_are_named(tmp_path, content):
    _write(tmp_path, "a", 1, _first(20))
    bad = _write(tmp_path, "b", 1, _first(10))
    (bad / "predictions.csv").unlink()
    if content is not None:
        (bad / "predictions.csv").write_text(content)
    comparisons, remarks = compare(read_runs(tmp_path))
    assert _rows(comparisons, "images") == []
    assert len(remarks) == 1
    assert len(_rows(comparisons, "seeds")) == 1


def test_zero_shot_is_compared_by_predictions_before_adaptation(tmp_path):
    for seed in (1, 2):
        folder = _write(tmp_path, "a", seed, _first(30), zero_shot_accuracy_percent=50.0)
        write_predictions(folder, _first(30), before=_first(20))
    comparisons, _ = compare(read_runs(tmp_path))
    (row,) = _rows(comparisons, "images")
    assert (row["first"], row["second"]) == ("A", "Zero-shot CLIP")
    assert (row["wins"], row["losses"], row["seeds"]) == (10, 0, 2)
    assert row["difference_points"] == pytest.approx(25.0)


def test_p_values_are_adjusted_over_the_pairs_of_a_dataset(tmp_path):
    for method, count in (("a", 10), ("b", 18), ("c", 40)):
        _write(tmp_path, method, 1, _first(count))
    rows = _rows(compare(read_runs(tmp_path))[0], "images")
    assert len(rows) == 3
    p = sorted(row["p"] for row in rows)
    adjusted = sorted(row["p_holm"] for row in rows)
    assert adjusted == pytest.approx([3 * p[0], 2 * p[1], max(2 * p[1], p[2])])


def test_a_long_block_compares_its_best_row_and_adjusts_for_all_pairs(tmp_path):
    for at in range(MAX_ROWS + 1):
        _write(tmp_path, f"m{at:02d}", 1, _first(10 + at))
    rows = _rows(compare(read_runs(tmp_path))[0], "images")
    assert len(rows) == MAX_ROWS
    assert {row["first"] for row in rows} == {f"M{MAX_ROWS}"}
    pairs = (MAX_ROWS + 1) * MAX_ROWS // 2
    rows.sort(key=lambda row: row["p"])
    assert rows[0]["p"] == pytest.approx(2 / 2**MAX_ROWS)
    assert rows[0]["p_holm"] == pytest.approx(pairs * rows[0]["p"])
    assert rows[1]["p_holm"] == pytest.approx((pairs - 1) * rows[1]["p"])


def test_datasets_are_counted_after_adjusting_over_all_datasets(tmp_path):
    """Six wins of six give p = 1/32, which is below 0.05 on one dataset but not on three."""
    for dataset, better in (("dtd", 6), ("eurosat", 0), ("fgvc", 0)):
        _write(tmp_path, "a", 1, _first(20 + better), dataset)
        _write(tmp_path, "b", 1, _first(20), dataset)
    comparisons, _ = compare(read_runs(tmp_path))
    (row,) = _rows(comparisons, "images")
    assert row["p_holm"] == pytest.approx(1 / 32)
    assert row["p_holm_block"] == pytest.approx(3 / 32)
    (pair,) = summary(comparisons).to_dict("records")
    assert pair["images: better on"] == 0
    whole = comparisons[comparisons["dataset"] == AVERAGE]
    assert whole["p_holm_block"].isna().all()


def test_runs_with_different_shots_are_not_compared(tmp_path):
    _write(tmp_path, "a", 1, _first(20))
    _write(tmp_path, "b", 1, _first(20), shots=8)
    comparisons, remarks = compare(read_runs(tmp_path))
    assert comparisons.empty
    assert summary(comparisons).empty
    assert remarks == []


def test_the_summary_counts_datasets(tmp_path):
    for dataset, (a, b) in {"dtd": (40, 10), "eurosat": (10, 40), "fgvc": (20, 21)}.items():
        _write(tmp_path, "a", 1, _first(a), dataset)
        _write(tmp_path, "b", 1, _first(b), dataset)
    (pair,) = summary(compare(read_runs(tmp_path))[0]).to_dict("records")
    counts = [pair[key] for key in ("images: better on", "worse on", "undecided on")]
    assert counts == [1, 1, 1]


def test_further_runs_without_predictions_are_only_counted(tmp_path):
    for method in "ab":
        for seed in range(8):
            folder = _write(tmp_path, method, seed, _first(20 + seed % 3))
            (folder / "predictions.csv").unlink()
    _, remarks = compare(read_runs(tmp_path))
    assert len(remarks) == 6
    assert remarks[-1] == "not compared over images: 11 more runs."


def test_seeds_tested_on_different_images_are_not_combined(tmp_path):
    for seed, count in ((1, N), (2, N // 2)):
        for method in "ab":
            folder = _write(tmp_path, method, seed, _first(20))
            write_predictions(folder, [True] * count)
    comparisons, (remark,) = compare(read_runs(tmp_path))
    assert _rows(comparisons, "images") == []
    assert "not tested on the same images" in remark
