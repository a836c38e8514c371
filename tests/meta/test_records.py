"""The interval of an accuracy over tasks."""

import math

import numpy as np
import pytest

from so_clip.meta.records import accuracy_rows, interval_percent, mean_accuracy


def test_the_interval_is_that_of_a_mean_of_many_tasks() -> None:
    accuracies = np.random.default_rng(0).normal(60, 8, 600)
    half = 1.96 * accuracies.std(ddof=1) / math.sqrt(600)
    assert interval_percent(accuracies.tolist()) == pytest.approx(half)


def test_one_task_has_no_interval() -> None:
    assert math.isnan(interval_percent([50.0]))


def test_every_source_counts_alike_whatever_its_number_of_tasks() -> None:
    by_source = {"a": {"text": [10.0, 20.0, 30.0]}, "b": {"text": [60.0]}}
    assert mean_accuracy(by_source, "text") == 40
    assert [row[:3] for row in accuracy_rows(by_source)] == [["a", "text", 20], ["b", "text", 60]]
