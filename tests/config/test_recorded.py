"""`--from RUN` repeats exactly the recorded configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.recorded import repeating
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.errors import InputError
from so_clip.fingerprint import settings_sha256
from so_clip.system.commands import override
from tests.helpers.command import call, shell_words
from tests.helpers.odd_paths import ODDEST

CONFIGURATIONS: dict[str, list[str]] = {
    "the defaults": [],
    "an experiment": ["experiment=demo"],
    "a method with its own schedule": ["method=clip_lora", "seed=3", "shots=16"],
    "no training": ["method=zero_shot", "dataset=imagenet_r", "template=specific"],
    "a fixed and a removed option": ["method=so_official", "optimizer.T=3", "~optimizer.eps"],
    "an added option": ["method=adamw", "+optimizer.fused=true", "force=true"],
    "parts of two methods": ["adapter=clip_lora", "adapter.rank=4", "method.name=mine"],
    "several datasets": ["dataset=eurosat", "dataset.split_file=x.json", "transfer=[dtd]"],
    "another backbone": ["backbone=vit_b16", "backbone.pretrained=null", "backbone.logit_scale=9"],
    "other pixels": ["backbone.resize_mode=squash", "backbone.mean=[0.5,0.25,0.125]"],
    "images of the user": [
        *("dataset=folder", "dataset.split_shares=[0.6,0.1,0.3]", "dataset.name=zoo"),
        *(override("data_root", f"/{ODDEST}"), override("results_dir", Path(ODDEST))),
    ],
}


def settings(options: list[str]) -> Settings:
    return resolved(from_config(compose(options)))


def write_record(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    return folder


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_recorded_configuration_is_repeated_exactly(options, tmp_path):
    first = settings(options)
    again = settings(repeating(write_record(tmp_path, first.record()), []))
    assert again.record() == first.record() | {"force": False}
    assert settings_sha256(again) == settings_sha256(first)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("recorded", "given"),
    [
        (["seed=3", "shots=2", "method=so_official"], ["seed=4", "shots=8"]),
        (["method=clip_lora", "adapter.rank=4", "seed=2"], ["method=so"]),
        (["backbone=vit_b16", "backbone.logit_scale=9", "shots=1"], ["backbone=vit_l14"]),
        (["template=specific", "optimizer.lr=1"], ["optimizer.lr=2", "~optimizer.eps"]),
    ],
)
def test_the_users_options_replace_recorded_ones(recorded, given, tmp_path):
    """An option that a group brings goes with the group."""
    run = write_record(tmp_path, settings(recorded).record())
    names = {word.partition("=")[0] for word in given}
    parts = {"method": ("adapter.",), "backbone": ("backbone.",)}
    dropped = tuple(names) + tuple(part for name in names for part in parts.get(name, ()))
    kept = [word for word in recorded if not word.startswith(dropped)]
    if "seed=4" in given:
        kept = ["method=so_official"]
    assert settings(repeating(run, given)).record() == settings([*kept, *given]).record()


def test_a_run_from_its_folder_is_the_same_run_also_in_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path / 'runs'}")
    assert call(*quick).code == 0
    (run,) = (tmp_path / "runs").glob("[!.]*")
    again = call("--from", run)
    assert (again.code, again.err) == (0, "")
    assert "finished before: skipped" in again.out
    sweep = call("--from", run, "-m", "template=plain,specific")
    assert sweep.out.rstrip().endswith("sweep of 2 runs: 1 done, 1 skipped (finished before)")


def test_the_folder_of_a_run_as_a_folder_of_choices_is_refused_and_the_way_is_named(tmp_path):
    run = write_record(tmp_path / ODDEST, settings(["method=zero_shot"]).record())
    for flags in (["--config-dir", run, "--config-name", "config"], ["--config-path", run]):
        done = call(*flags, f"results_dir={tmp_path / 'runs'}")
        assert (done.code, len(done.messages)) == (2, 1)
        words = shell_words(done.err[done.err.index("python -m") :])[2:]
        assert words == ["--from", str(run)]
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "so.yaml").write_text("shots: 1\n")
    hidden = call("--config-dir", tmp_path / "mine", "method=so")
    assert hidden.code == 2
    assert "method/so.yaml is a file of the program too" in hidden.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"adapter": {"name": "mine"}}, ["adapter.name=mine", "--config-dir"]),
        ({"optimizer": {"name": "so", "_target_": "os.system"}}, ["'_target_'"]),
        ({"optimizer": {"name": "so", "x=1 y": 1}}, ["'x=1 y'"]),
        ({"shots": "${oc.env:HOME}"}, ["shots=${oc.env:HOME}", "whole number"]),
        ({"method_title": None, "shots": -1}, ["shots=-1"]),
        ({"speed": 1}, ["speed"]),
    ],
)
def test_a_record_that_cannot_be_repeated_is_refused(change, parts, tmp_path):
    record = settings([]).record() | change
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(InputError) as caught:
        settings(repeating(tmp_path, []))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("content", [None, "", "a: [", "{}", "- 1", "method: so"])
def test_a_folder_without_a_recorded_run_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    fault = "no folder of a run" if content is None else "config.yaml"
    with pytest.raises(InputError, match=f"--from {tmp_path}.*{fault}"):
        repeating(tmp_path, [])


def test_an_experiment_is_refused_because_the_record_has_all_options(tmp_path):
    run = write_record(tmp_path, settings([]).record())
    with pytest.raises(InputError, match="experiment goes with no --from"):
        repeating(run, ["experiment=demo"])


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("group", ["vit_b16", "dfn_b16", "metaclip_b16"])
def test_the_weights_choose_between_groups_of_one_architecture(group, tmp_path):
    run = write_record(tmp_path, settings([f"backbone={group}"]).record())
    assert f"backbone={group}" in repeating(run, [])
