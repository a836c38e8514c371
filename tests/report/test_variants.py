"""The settings that name the rows of one method."""

from typing import Any

import pandas as pd
import pytest

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


def test_options_that_follow_from_the_architecture_are_not_named():
    def named(*backbones: tuple[str, str]) -> list[str]:
        run = {"method": "so", "method_title": "SO", "dataset": "digits", "shots": 4}
        backbone = [{"architecture": name, "pretrained": tag} for name, tag in backbones]
        settings = [{"backbone": choice} for choice in backbone]
        return list(variants(pd.DataFrame([run | {"settings": choice} for choice in settings])))

    clip, laion = ("ViT-B-16", "openai"), ("ViT-B-16", "laion2b")
    siglip = ("ViT-B-16-SigLIP", "webli")
    assert named(clip, siglip) == ["", ""]
    tags = [f"backbone.pretrained={tag}" for _, tag in (clip, laion, siglip)]
    assert named(clip, laion, siglip) == tags


def _changed(column: str, finished: tuple[str, ...], **settings: Any) -> list[str]:
    common = {"method": "so", "method_title": "SO", "dataset": "dtd", "shots": 4}
    runs = [
        {
            **common,
            "settings": {key: values[at] for key, values in settings.items()},
            column: f"{'ab'[at]}" * 64,
            "finished_at": time,
        }
        for at, time in enumerate(finished)
    ]
    return list(variants(pd.DataFrame(runs)))


@pytest.mark.parametrize(
    ("column", "option"),
    [("prompts_sha256", "prompts"), ("split_sha256", "split"), ("weights_sha256", "weights")],
)
def test_changed_contents_are_named_by_the_date_of_their_first_run(column, option):
    days = ("2026-11-22T12:00:01+00:00", "2026-11-23T12:00:01+00:00")
    assert _changed(column, days) == [f"{option}=as of 2026-11-22", f"{option}=as of 2026-11-23"]
    minutes = ("2026-11-22T12:00:01+00:00", "2026-11-22T12:07:01+00:00")
    assert _changed(column, minutes)[1] == f"{option}=as of 2026-11-22 12:07"
    assert _changed(column, days[:1]) == [""]


def test_without_different_dates_contents_are_named_by_their_checksum():
    same = ("2026-11-22T12:00:01+00:00",) * 2
    assert _changed("prompts_sha256", same) == ["prompts=aaaaaaaa", "prompts=bbbbbbbb"]
    assert _changed("prompts_sha256", ("", "")) == ["prompts=aaaaaaaa", "prompts=bbbbbbbb"]


def test_split_files_are_named_by_their_names_if_these_differ():
    days = ("2026-11-22T12:00:01+00:00", "2026-11-23T12:00:01+00:00")
    files = ("lists/mine.json", "C:\\lists\\yours, new.json")
    assert _changed("split_sha256", days, split_file=files) == [
        "split=mine.json",
        "split=yours_ new.json",
    ]
    assert _changed("split_sha256", days, split_file=files[:1] * 2)[0] == "split=as of 2026-11-22"


def test_files_of_class_names_that_differ_name_the_prompts():
    days = ("2026-11-22T12:00:01+00:00", "2026-11-23T12:00:01+00:00")
    files = ({"class_names": "a.json"}, {"class_names": "b.json"})
    assert _changed("prompts_sha256", days, user_data=files) == [
        "dataset.class_names=a.json",
        "dataset.class_names=b.json",
    ]


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
