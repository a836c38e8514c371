"""Means and intervals of accuracies over tasks; tests/results/test_interval.py has an oracle."""

import math

from so_clip.meta.records import accuracy_rows, interval_percent, mean_accuracy


def test_one_task_has_no_interval() -> None:
    assert math.isnan(interval_percent([50.0]))


def test_every_source_counts_alike_whatever_its_number_of_tasks() -> None:
    by_source = {"a": {"text": [10.0, 20.0, 30.0]}, "b": {"text": [60.0]}}
    assert mean_accuracy(by_source, "text") == 40
    assert [row[:3] for row in accuracy_rows(by_source)] == [["a", "text", 20], ["b", "text", 60]]
