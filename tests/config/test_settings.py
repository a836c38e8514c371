"""The settings of a run: defaults, and options that change the fingerprint."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from so_clip.config.parse import from_config
from so_clip.config.settings import Augment, Schedule, Settings
from so_clip.data.choice import MAX_SEED
from so_clip.errors import InputError
from so_clip.fingerprint import run_dir, run_fingerprint, settings_sha256
from so_clip.system.paths import CARDS_DIR
from tests.helpers.bases import clip_base
from tests.helpers.changed_settings import composed, composed_with, settings_with

# For every option of a run with SO, a value that is not the default.
OTHER_VALUES: dict[str, Any] = {
    "dataset.name": "eurosat",
    "backbone.architecture": "ViT-B-16",
    "backbone.pretrained": None,
    "backbone.logit_scale": 50,
    "backbone.resize_mode": "squash",
    "backbone.interpolation": "bilinear",
    "backbone.mean": [0.5, 0.5, 0.5],
    "backbone.std": [0.5, 0.5, 0.5],
    "adapter.name": "mine",
    "adapter.roles": ["attention"],
    "adapter.encoder": "text",
    "adapter.position": "up",
    "adapter.interpolation": 0.5,
    "optimizer.name": "mine",
    "optimizer.lr": 1e-3,
    "optimizer.betas": [0.8, 0.999],
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.1,
    "optimizer.density_ratio": 5e-3,
    "optimizer.T": 0,
    "optimizer.order": "update_first",
    "optimizer.bias_correction": "age",
    "optimizer.gradient_selection": "dense",
    "optimizer.moment_selection": "none",
    "optimizer.seed": 7,
    "optimizer.sampled_gradients": False,
    "schedule.batch_size": 16,
    "schedule.max_steps": 10,
    "schedule.stop_loss": 0,
    "schedule.lr_min": 0,
    "schedule.drop_last": True,
    "schedule.crops": 2,
    "method.name": "mine",
    "shots": 16,
    "seed": 2,
    "split_protocol": "coop",
    "protocol": "base_to_new",
    "transfer": ["dtd"],
    "tasks": 600,
    "episodes.ways": [5, 20],
    "episodes.queries": 15,
    "episodes.images": 200,
    "episodes.varied_shots": True,
    "imbalance": 1.5,
    "template": "specific",
    "device": "cpu",
    "precision": "bf16",
    "augment.scale": [0.5, 1.0],
    "augment.flip": False,
    "evaluation.batch_size": 8,
    "evaluation.precision": "bf16",
    "evaluation.every_steps": 10,
    "memory": "small",
    "image_budget_mib": 64.0,
    "text_budget_mib": 64,
}
# Options that cannot change a result. Files that they name count by their contents.
NO_DIFFERENCE: dict[str, Any] = {
    "results_dir": "elsewhere",
    "cards_dir": str(CARDS_DIR),
    "threads": 3,
    "graph": False,
    "checkpoint_seconds": 5,
    "rank_timeout_seconds": 60,
    "force": True,
    "on_corrupt": "skip",
    "evaluation.workers": 0,
    "evaluation.cache_dir": None,
    "evaluation.decode_cache_gib": 0,
    "evaluation.keep_logits": False,
    "save": False,
    "dataset.split_file": "mine.json",
    "backbone.checkpoint": "mine.pt",
    "method.title": "Mine",
    "data_root": "elsewhere",
}


def _folder(settings: Settings) -> Path:
    return run_dir(settings, run_fingerprint(settings, "0", clip_base("0")))


def _options(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, DictConfig):
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_defaults_are_the_papers():
    settings = settings_with({})
    assert settings.schedule == Schedule(batch_size=32, max_steps=2000, stop_loss=0.01, lr_min=1e-6)
    assert settings.augment == Augment(scale=(0.08, 1.0), flip=True)
    assert settings.method.optimizer.options["lr"] == 2e-4
    assert settings.method.optimizer.options["density_ratio"] == 5e-4
    assert settings.method.optimizer.options["T"] == 10
    assert settings.method.optimizer.options["order"] == "prune_first"
    assert settings.backbone.logit_scale == "auto"
    assert settings.trains


def _without(option: str) -> DictConfig:
    config = composed_with({})
    group, _, key = option.rpartition(".")
    with open_dict(config):
        del (OmegaConf.select(config, group) if group else config)[key]
    return config


# The signature of an adapter or optimizer decides which options it needs; see test_build.py.
@pytest.mark.parametrize(
    "option",
    [item for item in OTHER_VALUES if not item.startswith(("adapter.", "optimizer."))]
    + [*NO_DIFFERENCE, "schedule", "optimizer.lr"]
    + ["adapter.name", "adapter._target_", "optimizer.name", "optimizer._target_"],
)
def test_an_option_that_is_missing_is_named(option):
    with pytest.raises(InputError, match=f"{option} is missing|'{option}' not found"):
        from_config(_without(option))


def test_every_option_has_a_row_in_this_file():
    targets = {"adapter._target_", "optimizer._target_"}
    assert {*_options(composed())} == {*OTHER_VALUES, *NO_DIFFERENCE, *targets}


@pytest.mark.parametrize("option", sorted(OTHER_VALUES))
def test_any_changed_option_is_another_run(option):
    other = {"tasks": 2} if option.startswith("episodes.") else {}
    before, after = settings_with(other), settings_with({**other, option: OTHER_VALUES[option]})
    assert settings_sha256(before) != settings_sha256(after)
    assert _folder(before) != _folder(after)


@pytest.mark.parametrize("option", NO_DIFFERENCE)
def test_options_without_effect_on_results_keep_the_fingerprint(option):
    before, after = settings_with({}), settings_with({option: NO_DIFFERENCE[option]})
    assert before != after
    assert settings_sha256(before) == settings_sha256(after)
    assert _folder(before).name == _folder(after).name
    assert _folder(after).parent == after.placement.results_dir


def test_decoding_uses_one_thread_per_core_by_default():
    assert settings_with({}).evaluation.workers == len(os.sched_getaffinity(0))
    assert settings_with({"evaluation.workers": 7}).evaluation.workers == 7


def test_an_automatic_batch_size_is_recorded_as_such():
    assert settings_with({}).evaluation.batch_size == 256
    assert (
        settings_with({"evaluation.batch_size": "auto"}).record()["evaluation"]["batch_size"]
        == "auto"
    )


def test_the_feature_cache_is_beside_the_runs_or_elsewhere_or_off():
    assert str(settings_with({"results_dir": "r"}).evaluation.cache_dir) == "r/.features"
    for value, expected in (("elsewhere", "elsewhere"), (None, "None")):
        settings = settings_with({"evaluation.cache_dir": value})
        assert str(settings.evaluation.cache_dir) == expected


@pytest.mark.parametrize(
    ("precision", "evaluation", "expected"),
    [("fp32", "auto", "fp32"), ("auto", "auto", "auto"), ("bf16", "fp32", "fp32")],
)
def test_evaluation_uses_the_precision_of_the_run_by_default(precision, evaluation, expected):
    settings = settings_with({"precision": precision, "evaluation.precision": evaluation})
    assert settings.evaluation_precision == expected


@pytest.mark.parametrize(
    "option", [item for item in OTHER_VALUES if not item.startswith(("adapter.", "optimizer."))]
)
def test_training_options_do_not_change_a_zero_shot_run(option):
    other = {"tasks": 2} if option.startswith("episodes.") else {}
    before = settings_with(other, "method=zero_shot")
    after = settings_with({**other, option: OTHER_VALUES[option]}, "method=zero_shot")
    idle = ("shots", "seed", "split_protocol", "imbalance", "augment.", "schedule.")
    idle += ("evaluation.every_steps",)
    assert (settings_sha256(before) == settings_sha256(after)) == option.startswith(idle)


def test_an_experiment_without_training_is_plain_zero_shot():
    experiment = settings_with({}, "experiment=demo", "method=zero_shot")
    assert settings_sha256(experiment) == settings_sha256(settings_with({}, "method=zero_shot"))


def test_the_run_folder_names_its_choices():
    settings = settings_with({"shots": 16, "seed": 3, "backbone.architecture": "hf/ViT-B-16"})
    assert _folder(settings).name.startswith("digits-hf_vit-b-16-so-16shot-seed3-")


def test_the_run_folder_names_an_unusual_protocol():
    changes = {"protocol": "base_to_new", "imbalance": 0.5, "transfer": ["eurosat"]}
    name = _folder(settings_with(changes)).name
    assert name.startswith("digits-tiny-so-base_to_new-4shot-imbalance0.5-seed1-")
    zero_shot = _folder(settings_with(changes, "method=zero_shot"))
    assert zero_shot.name.startswith("digits-tiny-zero_shot-base_to_new-")


def test_records_and_fingerprints_hold_choices_and_no_module_paths():
    record = json.dumps(settings_with({}, "method=coop").record())
    assert '"adapter": {"name": "coop"' in record
    assert "so_clip." not in record
    assert "_target_" not in record


def test_code_of_a_named_choice_may_move():
    moved = ("a.Mine", "b.Mine")
    runs = [settings_with({"optimizer.name": "mine", "optimizer._target_": path}) for path in moved]
    assert settings_sha256(runs[0]) == settings_sha256(runs[1])


def test_the_order_of_transfer_datasets_does_not_matter():
    one, other = (
        settings_with({"transfer": names}) for names in (["dtd", "fgvc"], ["fgvc", "dtd"])
    )
    assert one == other
    assert one.data.transfer == ("dtd", "fgvc")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = settings_with({"data_root": "~/data", "dataset.split_file": "~/mine.json"})
    assert settings.data.data_root == tmp_path / "data"
    assert settings.data.split_file == tmp_path / "mine.json"


names = st.text(st.characters(codec="utf-8", exclude_characters="\0$"), min_size=1, max_size=20)
changes = st.fixed_dictionaries(
    {},
    optional={
        "shots": st.integers(1, 3),
        "seed": st.integers(0, 3) | st.integers(0, MAX_SEED),
        "backbone.architecture": st.sampled_from(["a-1", "a_1", "a/1", "A-1"]) | names,
        "method.name": st.from_regex(r"[A-Za-z0-9_-]{1,3}", fullmatch=True),
        "optimizer.lr": st.floats(1e-6, 1),  # the schedule's lr_min
        "schedule.max_steps": st.integers(1, 3),
        "template": names.map(lambda text: text.replace("{}", "") + "{}"),
        # ~0 is the home of an unknown user.
        "results_dir": names.filter(lambda text: not text.startswith("~")),
    },
)


@pytest.mark.slow
@given(changes, changes)
def test_different_runs_never_share_a_folder(first, second):
    runs = [settings_with(first), settings_with(second)]
    without = [run.record() | {"results_dir": None, "evaluation": None} for run in runs]
    differ = str(without[0]) != str(without[1])
    folders = [_folder(run) for run in runs]
    assert (folders[0].name != folders[1].name) == differ
    for run, folder in zip(runs, folders, strict=True):
        assert folder.parent == run.placement.results_dir
        assert folder.name not in (".", "..")
