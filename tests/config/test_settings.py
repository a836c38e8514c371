"""The settings of a run: refused values, and options that change the fingerprint."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Augment, Schedule, Settings
from so_clip.data.choice import MAX_SEED
from so_clip.errors import InputError
from so_clip.fingerprint import run_dir, run_fingerprint, settings_sha256
from so_clip.system.paths import CARDS_DIR
from tests.helpers.bases import clip_base

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

# (option, value, a part of the message)
REFUSED = [
    ("shots", 0, "shots=0: must be 1 or more"),
    ("shots", -3, "shots=-3: must be 1 or more"),
    ("shots", 1.5, "shots=1.5: must be a whole number"),
    ("shots", True, "shots=True: must be a whole number"),
    ("shots", None, "shots=None: must be a whole number"),
    ("shots", [1, 2], "must be a whole number"),
    ("seed", -1, "seed=-1: must be 0 or more"),
    ("seed", MAX_SEED + 1, f"must be {MAX_SEED} or less"),
    ("split_protocol", "copo", "must be clip_lora or coop. Did you mean 'coop'?"),
    ("protocol", "base_new", "must be all or base_to_new. Did you mean 'base_to_new'?"),
    ("protocol", None, "protocol=None: must be all or base_to_new"),
    ("transfer", "dtd", "transfer=dtd: must be a list of datasets, such as [dtd,imagenet_v2]"),
    ("transfer", None, "transfer=None: must be a list"),
    ("transfer", ["dtt"], "transfer=dtt: there is no dataset of that name. Did you mean 'dtd'?"),
    ("transfer", [1], "transfer=1: there is no dataset of that name"),
    ("transfer", ["dtd", "digits"], "digits is the run's own dataset. Leave it out"),
    ("transfer", ["dtd", "dtd"], "dtd is there twice"),
    ("imbalance", 0, "imbalance=0: must be from 0.001 (very uneven) to 1e+06 (even), or null"),
    ("imbalance", -1, "must be from 0.001"),
    ("imbalance", 1e7, "must be from 0.001"),
    ("imbalance", "uneven", "imbalance=uneven: must be a finite number"),
    ("imbalance", True, "must be a finite number"),
    ("precision", "fp8", "must be auto or fp32 or bf16 or fp16"),
    ("text_budget_mib", 0, "text_budget_mib=0: must be auto, or a number above 0"),
    ("text_budget_mib", 1e308, "at most 1e+09"),
    ("text_budget_mib", "much", "must be auto, or a number above 0"),
    ("threads", 0, "must be 1 or more"),
    ("threads", "all", "must be a whole number"),
    ("memory", "low", "must be fast or balanced or small"),
    ("device", "gpu", "device=gpu: must be auto, cpu, cuda, cuda:N or mps"),
    ("device", "cpu:", "must be auto"),
    ("device", "cuda:", "must be auto"),
    ("device", "cuda:-1", "must be auto"),
    ("device", "cuda:²", "must be auto"),
    ("device", "cuda:99999999999", "must be auto"),
    ("template", "a photo", "must be plain, specific, ensemble, a text with one {}"),
    ("template", "{} and {}", "must be plain, specific"),
    ("template", 3, "must be plain, specific"),
    ("data_root", None, "data_root is empty"),
    ("results_dir", None, "results_dir is empty"),
    ("results_dir", "", "results_dir is empty"),
    ("results_dir", "a\udcff", "not valid Unicode"),
    ("dataset", None, "dataset=None: must hold the options name, split_file"),
    ("dataset.split_file", "", "dataset.split_file is empty"),
    ("method.name", "../x", "must be made of letters"),
    ("backbone.logit_scale", 0, "must be above 0"),
    ("backbone.logit_scale", "x", "must be a number above 0, or auto"),
    ("backbone.resize_mode", "stretch", "must be auto or shortest or squash or longest"),
    ("backbone.mean", [0.5, 0.5], "must be auto or three numbers, such as [0.5,0.5,0.5]"),
    ("backbone.mean", [123, 116, 103], "must be from 0 to 1, because pixels are from 0 to 1"),
    ("backbone.std", [0.5, 0, 0.5], "must be above 0, at most 1"),
    ("optimizer.lr", 0, "must be above 0"),
    ("optimizer.lr", -1, "must be above 0"),
    ("optimizer.lr", float("nan"), "must be a finite number"),
    ("optimizer.lr", float("inf"), "must be a finite number"),
    ("optimizer.density_ratio", 0, "must be a number in (0, 1]"),
    ("optimizer.density_ratio", 1.5, "must be a number in (0, 1]"),
    ("optimizer.density_ratio", -5e-4, "must be a number in (0, 1]"),
    ("optimizer.density_ratio", "dense", "must be a number in (0, 1]"),
    ("optimizer.T", -1, "optimizer.T=-1: must be a whole number of steps, at least 0"),
    ("optimizer.T", 2.5, "must be a whole number"),
    ("optimizer.order", "prune", "must be prune_first or update_first. Did you mean 'prune_first'"),
    ("optimizer.bias_correction", "none", "must be step or age"),
    ("optimizer.gradient_selection", "rand", "must be random or importance or dense"),
    ("optimizer.sampled_gradients", "yes", "sampled_gradients=yes: must be auto, true or false"),
    ("optimizer.sampled_gradients", 1, "must be auto, true or false"),
    ("optimizer.moment_selection", "all", "must be importance or random or dense or none"),
    ("schedule.batch_size", 0, "must be 1 or more"),
    ("schedule.max_steps", -1, "must be 0 or more"),
    ("schedule.max_steps", 0, "needs at least one step; method=zero_shot"),
    ("schedule.stop_loss", -0.1, "must be 0 or more"),
    ("checkpoint_seconds", -1, "must be 0 or more"),
    ("schedule.lr_min", -1, "must be 0 or more"),
    ("schedule.lr_min", "low", "must be a finite number"),
    ("schedule.crops", 0, "must be 1 or more"),
    ("schedule.drop_last", 1, "must be true or false"),
    ("schedule.lr_min", 3e-4, "lr_min=0.0003: is above optimizer.lr=0.0002"),
    ("optimizer.lr", 1e-7, "lr_min=1e-06: is above optimizer.lr=1e-07"),
    ("optimizer.differentiable", True, "optimizer.differentiable=true: makes each step"),
    ("augment", None, "must hold the options scale, flip"),
    ("augment.scale", 0.5, "must be two numbers"),
    ("augment.scale", [0.9, 0.1], "needs 0 < low <= high <= 1"),
    ("augment.scale", [0, 1], "needs 0 < low <= high <= 1"),
    ("augment.flip", 1, "must be true or false"),
    ("evaluation.batch_size", 0, "must be 1 or more"),
    ("evaluation.batch_size", "all", "must be auto, or a whole number, 1 or more"),
    ("evaluation.batch_size", 1.5, "must be auto, or a whole number, 1 or more"),
    ("evaluation.batch_size", 10**19, "must be 1000000000 or less"),
    ("evaluation.workers", -1, "must be 0 or more"),
    ("evaluation.workers", "all", "must be a whole number"),
    ("evaluation.keep_logits", "yes", "must be auto, true or false"),
    ("evaluation.precision", "fp8", "must be auto or fp32 or bf16 or fp16"),
    ("evaluation.cache_dir", "", "evaluation.cache_dir is empty"),
    ("evaluation.cache_dir", "a\udcff", "not valid Unicode"),
    ("evaluation.workers", 10**6, "must be 256 or less"),
    ("evaluation.cache_dir", ["x"], "must be a path"),
    ("results_dir", ["x"], "results_dir=['x']: must be a path"),
    ("results_dir", True, "results_dir=True: must be a path"),
    ("results_dir", "~no_such_user/x", "there is no such home"),
    ("data_root", "a\0b", "holds a NUL character"),
    ("shots", 10**11, "must be 10000 or less"),
    ("template", "{} \udcff", "'{} \\udcff': is not valid Unicode"),
    ("method.name", None, "method.name=None"),
    ("method.name", "x" * 65, "at most 64"),
    ("method.title", None, "method.title=None: must be a line of text"),
    ("method.title", "a|b", "without |"),
    ("backbone.architecture", None, "must be a name"),
    ("backbone.pretrained", 1, "backbone.pretrained=1: must be a name"),
    ("backbone.checkpoint", ["x"], "backbone.checkpoint=['x']: must be a path"),
    ("backbone.checkpoint", "", "backbone.checkpoint is empty"),
    ("optimizer.betas", [0.9], "must be two numbers in [0, 1)"),
    ("optimizer.betas", 0.9, "must be two numbers in [0, 1)"),
    ("optimizer.betas", [0.9, 1], "must be two numbers in [0, 1)"),
    ("optimizer.eps", "small", "must be a finite number"),
    ("optimizer.weight_decay", -1, "must be a finite number, at least 0"),
    ("optimizer.amsgrad", "maybe", "must be true or false"),
    ("adapter._partial_", True, "there is no such option"),
    ("adapter._target_", "mine.Lora", "adapter.name=weights stands for so_clip.methods.weights"),
    ("optimizer._target_", "torch.optim.SGD", "Give the other class a name of its own too"),
    ("shot", 4, "shot: there is no such option. Did you mean 'shots'?"),
    ("schedule.max_step", 4, "no such option. Did you mean 'max_steps'?"),
    ("backbone.pretrain", 4, "no such option. Did you mean 'pretrained'?"),
]


@cache
def _composed(*overrides: str) -> DictConfig:
    return compose(overrides)


def _with(changes: dict[str, Any], *overrides: str) -> DictConfig:
    config = _composed(*overrides).copy()
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
    return config


def _settings(changes: dict[str, Any], *overrides: str) -> Settings:
    return from_config(_with(changes, *overrides))


def _folder(settings: Settings) -> Path:
    return run_dir(settings, run_fingerprint(settings, "0", clip_base("0")))


def _options(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, DictConfig):
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_defaults_are_the_papers():
    settings = _settings({})
    assert settings.schedule == Schedule(batch_size=32, max_steps=2000, stop_loss=0.01, lr_min=1e-6)
    assert settings.augment == Augment(scale=(0.08, 1.0), flip=True)
    assert settings.method.optimizer.options["lr"] == 2e-4
    assert settings.method.optimizer.options["density_ratio"] == 5e-4
    assert settings.method.optimizer.options["T"] == 10
    assert settings.method.optimizer.options["order"] == "prune_first"
    assert settings.backbone.logit_scale == "auto"
    assert settings.trains


@pytest.mark.parametrize(("option", "value", "message"), REFUSED)
def test_values_that_no_run_can_use_are_refused_by_name(option, value, message):
    with pytest.raises(InputError) as caught:
        _settings({option: value})
    assert message in str(caught.value)
    assert option.rpartition(".")[2] in str(caught.value)


def _without(option: str) -> DictConfig:
    config = _with({})
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
    assert {*_options(_composed())} == {*OTHER_VALUES, *NO_DIFFERENCE, *targets}


@pytest.mark.parametrize("option", sorted(OTHER_VALUES))
def test_any_changed_option_is_another_run(option):
    other = {"tasks": 2} if option.startswith("episodes.") else {}
    before, after = _settings(other), _settings({**other, option: OTHER_VALUES[option]})
    assert settings_sha256(before) != settings_sha256(after)
    assert _folder(before) != _folder(after)


@pytest.mark.parametrize("option", NO_DIFFERENCE)
def test_options_without_effect_on_results_keep_the_fingerprint(option):
    before, after = _settings({}), _settings({option: NO_DIFFERENCE[option]})
    assert before != after
    assert settings_sha256(before) == settings_sha256(after)
    assert _folder(before).name == _folder(after).name
    assert _folder(after).parent == after.placement.results_dir


def test_decoding_uses_one_thread_per_core_by_default():
    assert _settings({}).evaluation.workers == len(os.sched_getaffinity(0))
    assert _settings({"evaluation.workers": 7}).evaluation.workers == 7


def test_an_automatic_batch_size_is_recorded_as_such():
    assert _settings({}).evaluation.batch_size == 256
    assert (
        _settings({"evaluation.batch_size": "auto"}).record()["evaluation"]["batch_size"] == "auto"
    )


def test_the_feature_cache_is_beside_the_runs_or_elsewhere_or_off():
    assert str(_settings({"results_dir": "r"}).evaluation.cache_dir) == "r/.features"
    for value, expected in (("elsewhere", "elsewhere"), (None, "None")):
        settings = _settings({"evaluation.cache_dir": value})
        assert str(settings.evaluation.cache_dir) == expected


@pytest.mark.parametrize(
    ("precision", "evaluation", "expected"),
    [("fp32", "auto", "fp32"), ("auto", "auto", "auto"), ("bf16", "fp32", "fp32")],
)
def test_evaluation_uses_the_precision_of_the_run_by_default(precision, evaluation, expected):
    settings = _settings({"precision": precision, "evaluation.precision": evaluation})
    assert settings.evaluation_precision == expected


@pytest.mark.parametrize(
    "option", [item for item in OTHER_VALUES if not item.startswith(("adapter.", "optimizer."))]
)
def test_training_options_do_not_change_a_zero_shot_run(option):
    other = {"tasks": 2} if option.startswith("episodes.") else {}
    before = _settings(other, "method=zero_shot")
    after = _settings({**other, option: OTHER_VALUES[option]}, "method=zero_shot")
    idle = ("shots", "seed", "split_protocol", "imbalance", "augment.", "schedule.")
    idle += ("evaluation.every_steps",)
    assert (settings_sha256(before) == settings_sha256(after)) == option.startswith(idle)


def test_an_experiment_without_training_is_plain_zero_shot():
    experiment = _settings({}, "experiment=demo", "method=zero_shot")
    assert settings_sha256(experiment) == settings_sha256(_settings({}, "method=zero_shot"))


def test_the_run_folder_names_its_choices():
    settings = _settings({"shots": 16, "seed": 3, "backbone.architecture": "hf/ViT-B-16"})
    assert _folder(settings).name.startswith("digits-hf_vit-b-16-so-16shot-seed3-")


def test_the_run_folder_names_an_unusual_protocol():
    changes = {"protocol": "base_to_new", "imbalance": 0.5, "transfer": ["eurosat"]}
    name = _folder(_settings(changes)).name
    assert name.startswith("digits-tiny-so-base_to_new-4shot-imbalance0.5-seed1-")
    zero_shot = _folder(_settings(changes, "method=zero_shot"))
    assert zero_shot.name.startswith("digits-tiny-zero_shot-base_to_new-")


def test_records_and_fingerprints_hold_choices_and_no_module_paths():
    record = json.dumps(_settings({}, "method=coop").record())
    assert '"adapter": {"name": "coop"' in record
    assert "so_clip." not in record
    assert "_target_" not in record


def test_code_of_a_named_choice_may_move():
    moved = ("a.Mine", "b.Mine")
    runs = [_settings({"optimizer.name": "mine", "optimizer._target_": path}) for path in moved]
    assert settings_sha256(runs[0]) == settings_sha256(runs[1])


def test_the_order_of_transfer_datasets_does_not_matter():
    one, other = (_settings({"transfer": names}) for names in (["dtd", "fgvc"], ["fgvc", "dtd"]))
    assert one == other
    assert one.data.transfer == ("dtd", "fgvc")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = _settings({"data_root": "~/data", "dataset.split_file": "~/mine.json"})
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


@given(changes, changes)
def test_different_runs_never_share_a_folder(first, second):
    runs = [_settings(first), _settings(second)]
    without = [run.record() | {"results_dir": None, "evaluation": None} for run in runs]
    differ = str(without[0]) != str(without[1])
    folders = [_folder(run) for run in runs]
    assert (folders[0].name != folders[1].name) == differ
    for run, folder in zip(runs, folders, strict=True):
        assert folder.parent == run.placement.results_dir
        assert folder.name not in (".", "..")
