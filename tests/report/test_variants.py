"""The settings that name the rows of one method."""

from typing import Any

import pandas as pd

from so_clip.report.variants import variants

SO: dict[str, Any] = {"_target_": "so_clip.optim.so.SO", "lr": 2e-4, "T": 10}
ADAMW: dict[str, Any] = {"_target_": "torch.optim.AdamW", "lr": 2e-4, "eps": 1e-8}


def names(*optimizers: dict[str, Any] | None) -> list[str]:
    runs = [
        {
            "method": "taskres",
            "method_title": "TaskRes",
            "dataset": "digits",
            "shots": 4,
            "settings": {"optimizer": optimizer, "memory": "fast"},
        }
        for optimizer in optimizers
    ]
    return list(variants(pd.DataFrame(runs)))


def test_equal_runs_have_no_name():
    assert names(SO, SO) == ["", ""]


def test_optimizers_are_named_by_their_class():
    assert names(SO, ADAMW) == ["optimizer=SO", "optimizer=AdamW"]


def test_options_are_compared_between_runs_with_one_optimizer():
    slower = {**SO, "lr": 1e-4}
    assert names(SO, slower, ADAMW) == [
        "optimizer=SO, optimizer.lr=0.0002",
        "optimizer=SO, optimizer.lr=0.0001",
        "optimizer=AdamW, optimizer.lr=0.0002",
    ]


def test_prompts_from_a_changed_file_are_different_rows():
    settings = {"template": "/home/me/templates.txt", "protocol": "all"}
    common = {"method": "so", "method_title": "SO", "dataset": "dtd", "shots": 4}
    runs = [
        {**common, "settings": settings, "prompts_sha256": letter * 64} for letter in ("a", "b")
    ]
    assert list(variants(pd.DataFrame(runs))) == ["prompts=aaaaaaaa", "prompts=bbbbbbbb"]
    assert list(variants(pd.DataFrame([runs[0], runs[0]]))) == ["", ""]


def test_an_option_that_only_one_run_has_is_named():
    assert names(SO, {**SO, "other_option": 1})[1] == "optimizer.other_option=1"


def test_a_recorded_name_is_compared_like_a_target():
    so, adamw = ({"name": name, "lr": 2e-4} for name in ("so", "adamw"))
    assert names(so, so | {"T": 10}, adamw) == [
        "optimizer=so",
        "optimizer=so, optimizer.T=10",
        "optimizer=adamw",
    ]


def test_the_names_of_classes_are_named_as_the_user_sets_them():
    runs = [
        {
            "method": "so",
            "method_title": "SO",
            "dataset": "photos",
            "shots": 4,
            "settings": {"user_data": {"class_names": names_file}},
        }
        for names_file in (None, "names.json")
    ]
    assert list(variants(pd.DataFrame(runs))) == [
        "dataset.class_names=None",
        "dataset.class_names=names.json",
    ]
