"""The tasks of a run: their classes and images, and how they are shown."""

import json

import pytest

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.errors import InputError
from so_clip.tasks.draws import data_of_task, draw_tasks, draws_sha256
from tests.helpers.command import call

WORDS = ("dataset=digits", "tasks=4", "shots=3", "episodes.ways=[2,6]")


def _settings(*words: str) -> Settings:
    return from_config(compose([*WORDS, *words]))


def test_the_same_seed_has_the_same_tasks_for_every_method():
    data = gather(_settings().data)
    tasks = draw_tasks(_settings("method=so"), data.splits)
    assert draw_tasks(_settings("method=zero_shot"), data.splits) == tasks
    assert draw_tasks(_settings("tasks=9"), data.splits)[:4] == tasks
    assert draw_tasks(_settings("seed=2"), data.splits) != tasks


def test_images_come_from_the_train_and_the_test_list():
    data = gather(_settings().data)
    train, test = ({path for path, _ in lists} for lists in (data.splits.train, data.splits.test))
    labels = dict([*data.splits.train, *data.splits.test])
    for task in draw_tasks(_settings(), data.splits):
        of_task = data_of_task(task, data)
        names = of_task.splits.class_names
        assert len(names) == len(task.labels) <= 6
        assert {path for path, _ in of_task.few_shot.train} <= train
        assert {path for path, _ in of_task.splits.test} <= test
        for path, label in (*of_task.few_shot.train, *of_task.splits.test):
            assert names[label] == data.splits.class_names[labels[path]]


def test_too_few_classes_are_named():
    data = gather(_settings().data)
    with pytest.raises(InputError, match=r"episodes.ways=\[11,12\]"):
        draw_tasks(_settings("episodes.ways=[11,12]", "episodes.images=900"), data.splits)


def test_draw_prints_the_tasks():
    done = call("draw", *WORDS)
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    data = gather(_settings().data)
    tasks = draw_tasks(_settings(), data.splits)
    assert document["sha256"] == draws_sha256(tasks)
    assert [tuple(draw["labels"]) for draw in document["draws"]] == [task.labels for task in tasks]
    assert document["draws"][1]["train"] == [list(example) for example in tasks[1].few_shot]
    assert document["episodes"]["ways"] == [2, 6]
