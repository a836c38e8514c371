"""Scores from the columns of predictions.csv, against one image at a time in exact fractions."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.results.scores import harmonic_mean, per_class, scores
from tests.oracles import scores_oracle as oracle

KEYS = ("accuracy_percent", "mean_class_accuracy_percent", "expected_calibration_error_percent")
# Includes the edges of all bins, as floats.
CONFIDENCES = st.floats(0, 1, width=32) | st.sampled_from([index / 15 for index in range(16)])
ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), CONFIDENCES, st.integers(0, 6), CONFIDENCES),
    min_size=1,
    max_size=60,
)


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    names = ("label", "zero_shot_prediction", "zero_shot_confidence", "prediction", "confidence")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


@settings(max_examples=80)
@given(ROWS)
def test_scores_equal_the_oracle(rows):
    values = scores(_columns(rows))
    of_model = {
        "zero_shot_": [(row[0], row[1], row[2]) for row in rows],
        "": [(row[0], row[3], row[4]) for row in rows],
    }
    assert list(values) == [prefix + key for prefix in of_model for key in KEYS]
    for prefix, of in of_model.items():
        for key in KEYS:
            expected = float(getattr(oracle, key)(of))
            assert values[prefix + key] == pytest.approx(expected, rel=1e-12, abs=1e-10), key


@settings(max_examples=20)
@given(ROWS)
def test_the_text_of_a_file_gives_the_same_scores(rows):
    columns = _columns(rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    read = [*csv.DictReader(io.StringIO(text.getvalue()))]
    assert scores({name: [row[name] for row in read] for name in columns}) == scores(columns)


@settings(max_examples=40)
@given(ROWS)
def test_per_class_has_one_row_per_class(rows):
    names = [f"class {index}" for index in range(9)]
    table = per_class(_columns(rows), names)
    assert (table["label"], table["name"]) == ([*range(9)], names)
    expected = oracle.class_accuracies_percent([(row[0], row[3], row[4]) for row in rows])
    for label in range(9):
        assert table["images"][label] == sum(row[0] == label for row in rows)
        cell = table["accuracy_percent"][label]
        if label in expected:
            assert cell == pytest.approx(float(expected[label]))
        else:
            assert cell == table["zero_shot_accuracy_percent"][label] == ""


def test_the_calibration_error_by_hand():
    # Bin (0.6, 2/3]: one of two right at 0.65; bin (14/15, 1]: right at 1.
    rows = [(0, 0, 1.0, 0, 0.65), (0, 0, 1.0, 1, 0.65), (1, 1, 1.0, 1, 1.0)]
    values = scores(_columns(rows))
    error = values["expected_calibration_error_percent"]
    assert error == pytest.approx(100 * (2 / 3 * abs(0.5 - 0.65)))
    assert values["zero_shot_expected_calibration_error_percent"] == 0


def test_each_class_counts_once_in_the_mean():
    rows = [(0, 0, 1.0, 0, 1.0)] * 9 + [(1, 0, 1.0, 0, 1.0)]
    values = scores(_columns(rows))
    assert values["accuracy_percent"] == pytest.approx(90)
    assert values["mean_class_accuracy_percent"] == 50


def test_labels_may_start_at_another_number():
    columns = _columns([(5, 5, 1.0, 6, 1.0), (6, 6, 1.0, 6, 1.0)])
    table = per_class(columns, ["a", "b", "c"], first_label=5)
    assert table["label"] == [5, 6, 7]
    assert table["images"] == [1, 1, 0]
    assert table["accuracy_percent"] == [0.0, 100.0, ""]


@pytest.mark.parametrize(
    ("a", "b", "mean"), [(50, 50, 50), (100, 50, 200 / 3), (0, 0, 0), (0, 70, 0)]
)
def test_harmonic_mean(a, b, mean):
    assert harmonic_mean(a, b) == pytest.approx(mean)
