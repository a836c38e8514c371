"""Adapted models from Python: what changes, what does not, and what is refused."""

import gc
import random
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from PIL import Image

import so_clip
from so_clip import adapters
from so_clip.api.few_shots import FewShots
from so_clip.api.options import overrides_of, settings_of
from so_clip.errors import InputError
from tests.helpers.made_datasets import write_class_folders

STEPS = {"schedule": {"max_steps": 2}, "evaluation": {"workers": 0}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "photos"
    write_class_folders(folder, ("apple_tree", "oak"), images=6)
    return folder


@pytest.fixture(scope="module")
def few(photos) -> FewShots:
    return so_clip.few_shot(photos, shots=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["so", "clip_lora", "linear_probe"])
def test_the_clip_does_not_change_and_adapts_again_to_the_same_model(clip, few, photos, method):
    before = clip.backbone.weights_sha256
    names = {name for name, _ in clip.backbone.named_modules()}
    images = sorted(photos.rglob("*.png"))
    zero_shot = clip.predict(images, few.class_names)
    first, second = (so_clip.adapt(clip, few, method, **STEPS) for _ in range(2))
    assert clip.backbone.weights_sha256 == before
    assert {name for name, _ in clip.backbone.named_modules()} == names
    assert not any(value.requires_grad for value in clip.backbone.parameters())
    assert clip.predict(images, few.class_names) == zero_shot
    assert first.losses == second.losses
    state, other = first.model.state_dict(), second.model.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_the_model_is_a_frozen_module_from_pixels_to_the_logits_of_predictions(clip, few):
    result = so_clip.adapt(clip, few, **STEPS)
    size = clip.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (5, 3, size, size), generator=generator, dtype=torch.uint8)
    logits_BK = result.model(images_BCHW)
    assert not logits_BK.requires_grad
    assert logits_BK.shape == (5, len(result.class_names))
    confidence_BK = (logits_BK / (result.about.temperature or 1.0)).softmax(1)
    found = result.predict(images_BCHW, top=1)
    assert [one.label for one in found] == logits_BK.argmax(1).tolist()
    torch.testing.assert_close(
        torch.tensor([one.confidence for one in found]), confidence_BK.max(1).values
    )


@pytest.mark.parametrize("method", ["so", pytest.param("coop", marks=pytest.mark.slow)])
def test_a_saved_model_is_read_back_with_equal_predictions(clip, few, photos, tmp_path, method):
    result = so_clip.adapt(clip, few, method, **STEPS)
    result.save(tmp_path / "mine.safetensors")
    loaded = so_clip.load_adapted(tmp_path / "mine.safetensors", device="cpu")
    images = sorted(photos.rglob("*.png"))
    assert loaded.predict(images) == result.predict(images)
    assert loaded.class_names == ("apple tree", "oak")
    other = so_clip.load_adapted(
        tmp_path / "mine.safetensors", device="cpu", class_names=("fir", "elm", "ash")
    )
    assert {*other.predict(images)[0].names} == {"fir", "elm", "ash"}


@pytest.mark.slow
def test_other_pixels_go_with_the_model_into_its_file(clip, few, tmp_path):
    pixels = {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5, 0.25, 0.5)}
    squashing = so_clip.load("tiny", device="cpu", **pixels)
    wide = Image.effect_noise((90, 40), 80).convert("RGB")
    square = wide.resize((squashing.backbone.image_size,) * 2, Image.Resampling.BILINEAR)
    names = few.class_names
    assert squashing.predict([wide], names) == squashing.predict([square], names)
    assert squashing.predict([square], names) != clip.predict([square], names)
    result = so_clip.adapt(squashing, few, **STEPS)
    result.save(tmp_path / "mine.safetensors")
    loaded = so_clip.load_adapted(tmp_path / "mine.safetensors", device="cpu")
    assert loaded.predict([wide]) == result.predict([wide]) == loaded.predict([square])
    adapter = adapters.load(tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=r"other pixels.*Load it with resize_mode=squash, inter"):
        adapters.restore(adapter, device="cpu", backbone=clip.backbone.copy())


@pytest.mark.slow
def test_no_file_stays_without_results_dir(clip, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = {name: sorted((photos / name).iterdir()) for name in ("apple_tree", "oak")}
    few = so_clip.few_shot(images, shots=2)
    result = so_clip.adapt(clip, few, method="so", **STEPS)
    assert result.folder is None
    with pytest.raises(InputError):
        so_clip.adapt(clip, few, method="so", optimizer={"lr": -1})
    del few  # a list of images in memory is a temporary file
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_test_images_there_is_no_accuracy(clip, photos):
    pairs = [(file, file.parent.name) for file in sorted(photos.rglob("*.png"))]
    result = so_clip.adapt(clip, so_clip.few_shot(pairs, shots=2), **STEPS)
    assert result.accuracy_percent is None
    assert result.zero_shot_accuracy_percent is None
    assert len(result.losses) == 2
    assert result.metrics["tested_on"] == "training"


@pytest.mark.slow
def test_the_global_state_of_the_program_does_not_change(clip, few):
    def state() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            list(warnings.filters),
            sorted(BaseContainer._resolvers),
            sorted(ConfigStore.instance().repo),
            GlobalHydra.instance().is_initialized(),
        ]

    for method in ("so", "lora"):
        so_clip.adapt(clip, few, method, **STEPS)  # some packages add filters when imported
        before = state()
        so_clip.adapt(clip, few, method, **STEPS, threads=3)
        assert state() == before


@pytest.mark.slow
def test_it_works_inside_a_program_that_uses_hydra(tmp_path, clip, few):
    (tmp_path / "config.yaml").write_text("a: ${times:3}\nlr: 1\n")
    OmegaConf.register_new_resolver("times", lambda value: value * 100, replace=True)
    try:
        with initialize_config_dir(str(tmp_path), version_base=None):
            config = compose("config")
            result = so_clip.adapt(clip, few, **STEPS)
            assert GlobalHydra.instance().is_initialized()
            assert config.a == 300
            assert compose("config", overrides=["lr=2"]).lr == 2
        assert len(result.losses) == 2
    finally:
        OmegaConf.clear_resolver("times")


@pytest.mark.slow
def test_it_works_in_several_threads_at_once(clip, photos):
    seeds, losses = (1, 2, 3), {}

    def adapt(seed: int) -> None:
        few = so_clip.few_shot(photos, shots=1, seed=seed)
        losses[seed] = so_clip.adapt(clip, few, **STEPS).losses

    threads = [threading.Thread(target=adapt, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = dict(losses)
    for seed in seeds:
        adapt(seed)
    assert found == losses


def test_options_become_overrides_of_the_command():
    options = {
        "memory": "small",
        "optimizer": {"T": 5, "betas": [0.9, 0.99]},
        "schedule.lr_min": 0.0,
        "augment": {"flip": np.bool_(False), "scale": (np.float32(0.5), 1)},
        "method.title": "a, b",
    }
    assert overrides_of(options) == [
        "memory=small",
        "optimizer.T=5",
        "optimizer.betas=[0.9,0.99]",
        "schedule.lr_min=0.0",
        "augment.flip=false",
        "augment.scale=[0.5,1]",
        "method.title='a, b'",
    ]
    settings = settings_of(overrides_of(options))
    assert settings.placement.memory == "small"
    assert settings.method.title == "a, b"
    assert settings.method.optimizer.options["T"] == 5


def test_arguments_that_cannot_be_used_are_named(clip, few, photos, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    image = photos / "oak" / "0.png"

    def refused(function, *arguments, **options) -> str:
        with pytest.raises(InputError) as caught:
            function(*arguments, **options)
        return str(caught.value)

    load, draw, adapt = so_clip.load, so_clip.few_shot, so_clip.adapt
    assert "Did you mean 'vit_b16'" in refused(load, "vitb16")
    assert "load_adapted reads" in refused(load, "mine.safetensors")
    assert "pretrained=TAG" in refused(load, "ViT-B-16")
    assert "random weights" in refused(load, "tiny", pretrained=None)
    assert "Give a file with checkpoint=FILE" in refused(load, "tiny", tmp_path / "none.pt")
    assert refused(load, "tiny", precision="fp8").startswith("precision=fp8: must be")
    assert "no such folder" in refused(draw, "fotos")
    assert "Did you mean 'eurosat'" in refused(draw, "eurosatt")
    assert refused(draw, photos, shots=0) == "shots=0: must be 1 or more."
    assert refused(draw, photos, shots="4").startswith("shots='4': must be a whole number")
    assert "Did you mean 'shots'" in refused(draw, photos, shot=4)
    assert "is the name of an image" in refused(draw, "a.jpg")
    assert refused(draw, photos, split_shares=[1]).startswith("split_shares=[1]: must be three")
    assert "Did you mean 'split_seed'" in refused(draw, photos, split_sed=2)
    assert refused(draw, photos, test=[]).startswith("test: goes with images in memory")
    named = write_csv(tmp_path / "dataset.csv", "path,label", "a.png,oak", "b.png,elm,2")
    assert refused(draw, named).startswith(f"{named}: line 3: holds 3 values")
    assert "is no pair" in refused(draw, [image])
    assert "is no name of a class" in refused(draw, [(image, 3)])
    assert "source['oak']: is a single image" not in refused(draw, {"oak": [image]})
    assert refused(draw, {"oak": image}).startswith(f"source['oak']: images: {image} is")
    assert refused(draw, {"oak": [image]}).startswith("source: holds one class")
    assert "holds no images" in refused(draw, {})
    assert "missing" in refused(draw, {"oak": [image], "elm": [tmp_path / "none.png"]}, shots=1)
    assert "is str" in refused(adapt, "vit_b16", few)
    assert "is str" in refused(adapt, clip, "photos/")
    assert "Did you mean 'so'" in refused(adapt, clip, few, "soo")
    assert "'schedule.max_steps'" in refused(adapt, clip, few, steps=5)
    assert refused(clip.predict, "a.jpg", ["oak", "elm"]).startswith("images: a.jpg is a single")
    assert "argument of so_clip.few_shot" in refused(adapt, clip, few, shots=8)
    assert "argument of so_clip.load" in refused(adapt, clip, few, backbone={"logit_scale": 1})
    assert "always holds its adapter" in refused(adapt, clip, few, save=False)
    assert "there is no such option" in refused(adapt, clip, few, schedule={"steps": 3})
    assert refused(adapt, clip, few, optimizer={"T": -1}).startswith("optimizer.T=-1")
    assert "single image" in refused(clip.predict, str(image), ["oak", "elm"])
    assert "two or more names" in refused(clip.predict, [image], "oak")
    assert "is a web page" not in refused(clip.predict, [tmp_path / "notes.txt"], ["oak", "elm"])


def write_csv(file: Path, *rows: str) -> Path:
    file.write_text("\n".join(rows))
    return file


def test_the_names_of_the_package_exist():
    for name in so_clip.__all__:
        assert getattr(so_clip, name) is not None
    assert {"load", "few_shot", "adapt", "load_adapted", "adapters"} <= {*dir(so_clip)}
    assert not hasattr(so_clip, "loads")
