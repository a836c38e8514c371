"""Runs on a model in a folder, `local-dir:PATH`: records, identity, and what is made from them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import so_clip
from so_clip.adapters import load
from so_clip.errors import InputError
from tests.helpers.command import call
from tests.helpers.places import write_place
from tests.helpers.small_models import CONFIG
from tests.helpers.whole_runs import run

STEPS = ("method=so", "shots=1", "schedule.max_steps=2", "optimizer.T=1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's results, its base, and an adapter file alone."""
    root = tmp_path_factory.mktemp("places")
    write_place(root / "base, v1")
    finished = run(root / "results", named(root), *STEPS)
    shutil.copy(finished.folder / "adapter.safetensors", root / "alone.safetensors")
    Image.new("RGB", (40, 30), "red").save(root / "a.png")
    return root


def named(root: Path) -> str:
    return f"backbone.architecture='local-dir:{root / 'base, v1'}'"


def folder_of(root: Path) -> Path:
    return next(root.glob("results/digits-*"))


def test_names_and_records_have_no_path_of_the_base(root: Path) -> None:
    folder = folder_of(root)
    assert folder.name.startswith("digits-local-dir_base_v1-so-1shot-seed1-")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["backbone"] == "local-dir:base, v1"
    about = load(root / "alone.safetensors").about
    assert about.base.architecture == "local-dir:base, v1"
    assert str(root) not in about.model_dump_json()
    backbone = yaml.safe_load((folder / "config.yaml").read_text())["backbone"]
    assert backbone["architecture"] == f"local-dir:{root / 'base, v1'}"
    assert backbone["pretrained"] is None


def test_a_base_at_another_place_is_the_same_base(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "base, v1", tmp_path / "base, v1")
    done = call(f"results_dir={root / 'results'}", named(tmp_path), *STEPS)
    assert done.code == 0, done.err
    assert "skipped" in done.out
    assert len([*root.glob("results/digits-*")]) == 1


def test_a_run_s_folder_names_its_base(root: Path, tmp_path: Path) -> None:
    folder = folder_of(root)
    done = call("predict", folder, root / "a.png")
    assert done.code == 0, done.err
    done = call("export", folder, "--to", "open_clip", tmp_path / "x.safetensors")
    assert done.code == 0, done.err
    done = call("evaluate", folder, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    done = call("--from", folder, f"results_dir={tmp_path}", "seed=2", "--cfg", "job")
    assert f"local-dir:{root / 'base, v1'}" in done.out


@pytest.mark.slow
def test_an_adapter_file_alone_needs_the_folder(root: Path, tmp_path: Path) -> None:
    file = root / "alone.safetensors"
    with pytest.raises(InputError, match=r"its base is local-dir:base, v1, a folder .*checkpoint="):
        so_clip.load_adapted(file)
    adapted = so_clip.load_adapted(file, checkpoint=root / "base, v1")
    expected = so_clip.load_adapted(folder_of(root)).predict([root / "a.png"])
    assert adapted.predict([root / "a.png"]) == expected
    options = [file, "dataset=digits", f"results_dir={tmp_path}"]
    refused = call("evaluate", *options)
    assert refused.code == 2
    assert "Give backbone.architecture=local-dir:PATH" in refused.err
    assert call("evaluate", *options, named(root)).code == 0


def test_a_base_that_has_changed_is_refused(root: Path, tmp_path: Path) -> None:
    """The weights fit another number of heads, and would give other answers without an error."""
    base = tmp_path / "base, v1"
    text = {**CONFIG["text_cfg"], "heads": 1}
    write_place(base, text_cfg=text)
    with pytest.raises(InputError, match=r"has another model_cfg or another tokenizer"):
        so_clip.load_adapted(root / "alone.safetensors", checkpoint=base)


@pytest.mark.slow
def test_the_forecast_and_python_take_the_name(root: Path) -> None:
    done = call("forecast", named(root), *STEPS)
    assert done.code == 0, done.err
    name = f"local-dir:{root / 'base, v1'}"
    clip = so_clip.load(name, device="cpu")
    assert clip.backbone.model.visual.conv1.weight.shape[0] == 64
    with pytest.raises(InputError, match=r"pretrained='openai': .* weights of its own"):
        so_clip.load(name, pretrained="openai")


@pytest.mark.slow
def test_an_option_that_a_published_base_does_not_take(tmp_path: Path) -> None:
    finished = run(tmp_path, *STEPS)
    refused = call("evaluate", finished.folder, "backbone.architecture=ViT-B-32")
    assert refused.code == 2
    assert "belongs to tiny alone" in refused.err
