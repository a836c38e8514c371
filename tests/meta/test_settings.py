"""conf/meta and the declared options agree with the code, with the help and with each other."""

from dataclasses import fields
from pathlib import Path

import pytest

from so_clip.meta.parse import META, meta_settings
from so_clip.meta.settings import (
    AdapterChoice,
    TrainingChoice,
    declared_options,
)
from so_clip.smat.options import SmatOptions, TrainingOptions
from tests.helpers.command import call

EXPERIMENTS = sorted(path.stem for path in (META.folder / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_makes_settings(name: str) -> None:
    settings = meta_settings([f"experiment={name}"])
    assert settings.training.options.tasks == settings.training.tasks
    assert settings.adapter.model.experts == settings.adapter.experts


def test_the_setting_of_the_paper_has_the_sources_and_targets_of_the_issue() -> None:
    settings = meta_settings(["experiment=smat"])
    assert settings.data.sources == ("imagenet", "fgvc", "dtd", "oxford_flowers")
    assert settings.targets == (
        *("food101", "oxford_pets", "stanford_cars", "caltech101"),
        *("sun397", "eurosat", "ucf101"),
    )
    assert settings.backbone.architecture == "ViT-B-16-quickgelu"
    assert settings.episodes.varied_shots


def test_the_released_setting_has_every_fault_that_has_a_switch() -> None:
    settings = meta_settings(["experiment=smat_released"])
    default = meta_settings([])
    for name in ("test_beta", "keys", "task_embedding", "text_tokens"):
        assert getattr(settings.adapter, name) != getattr(default.adapter, name)
    assert settings.training.schedule == "released"


@pytest.mark.parametrize(
    ("choice", "options"), [(AdapterChoice, SmatOptions), (TrainingChoice, TrainingOptions)]
)
def test_every_option_of_the_model_and_of_its_training_is_declared(choice, options) -> None:
    declared = choice.model_fields
    for field in fields(options):
        assert declared[field.name].default == field.default, field.name


def test_the_help_names_every_option_with_its_default() -> None:
    text = call("meta", "--help").out
    for name in declared_options():
        assert f"  {name}=" in text, name
    assert "  training.tasks=50000 " in text
    assert "  sources=[imagenet,fgvc,dtd,oxford_flowers]\n" in text


def test_options_without_an_effect_are_recorded_as_null() -> None:
    words = ["targets=[]", "select=last", "validation_tasks=0"]
    record = meta_settings(words).record()
    assert record["test_tasks"] == 0
    assert record["validate_every"] is None
    assert record["shots"] is None
    assert meta_settings([*words, "episodes.varied_shots=false"]).record()["shots"] == 4


def test_the_users_folder_has_experiments_and_backbones(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "backbone").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /backbone: mine\ntraining: {tasks: 8}\n"
    )
    (tmp_path / "backbone" / "mine.yaml").write_text(
        "architecture: ViT-B-32\npretrained: null\ncheckpoint: null\nlogit_scale: auto\n"
    )
    settings = meta_settings(["experiment=mine"], tmp_path)
    assert settings.training.tasks == 8
    assert settings.backbone.architecture == "ViT-B-32"
