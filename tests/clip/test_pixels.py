"""Each model's own pixels: open_clip's test transform, on odd images, for all published weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from so_clip.clip.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocessing,
    chosen_preprocessing,
    named_preprocessing,
    preprocessing_from,
    preprocessing_of,
    published_preprocessing,
    unusual_pixels,
)
from so_clip.data.images import read_image
from so_clip.data.transforms import LONGEST, TestPixels
from so_clip.errors import InputError

LIMIT = 2 / 255
SIDE = 56
SIGLIP = Preprocessing("squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _noise(mode: str, width: int, height: int) -> Image.Image:
    """Noise over a ramp, in any mode of 8 bits."""
    rng = np.random.default_rng(width * 10_000 + height)
    shape = (height, width, len(Image.new(mode, (1, 1)).getbands()))
    ramp = np.linspace(0, 255, num=int(np.prod(shape))).reshape(shape)
    values = np.where(rng.random(shape) < 0.5, rng.integers(0, 256, shape), ramp)
    return Image.frombytes(mode, (width, height), values.astype(np.uint8).tobytes())


def _made() -> Iterator[tuple[str, Image.Image]]:
    sizes = [(1, 1), (1, 7), (9, 1), (2, 2), (3, 200), (300, 5), (SIDE, SIDE), (SIDE + 1, SIDE)]
    sizes += [(SIDE - 1, SIDE - 1), (500, 333), (64, 1), (333, 500), (1, LONGEST + 1)]
    for width, height in sizes:
        yield f"{width}x{height}.png", _noise("RGB", width, height)
    yield "grey.png", _noise("L", 70, 41)
    yield "grey and alpha.png", _noise("LA", 41, 70)
    yield "alpha.png", _noise("RGBA", 90, 30)
    yield "cmyk.jpg", _noise("CMYK", 64, 80)
    yield "palette.gif", _noise("RGB", 77, 50).quantize(16)
    yield "transparent palette.png", _noise("RGBA", 50, 77).quantize(8)
    yield "one bit.png", _noise("L", 33, 90).convert("1")
    deep = (np.arange(61 * 43) % 256).astype(np.uint16).reshape(43, 61)
    yield "16 bits.png", Image.fromarray(deep)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Odd images, read as a run reads them."""
    folder, read = tmp_path_factory.mktemp("odd"), []
    for name, image in _made():
        image.save(folder / name)
        read.append(read_image(folder / name))
    assert len(read) > 20
    return read


def published() -> list[tuple[str, str]]:
    return [(architecture, tag) for architecture, tag in open_clip.list_pretrained()]


def _assert_open_clips(preprocess: Preprocessing, config: dict[str, Any], images: Any) -> None:
    """Compare the input of the model with open_clip's, in pixels from 0 to 1."""
    theirs = image_transform_v2(PreprocessCfg(**config | {"size": SIDE}), is_train=False)
    mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (preprocess.mean, preprocess.std))
    pixels = preprocess.pixels(SIDE)
    for image in images:
        square = pixels.square(image)
        assert (square.mode, square.size) == ("RGB", (SIDE, SIDE))
        ours_CHW = torch.from_numpy(np.array(square)).movedim(-1, 0) / 255
        if preprocess.resize_mode == "longest" and min(image.size) * SIDE * 2 <= max(image.size):
            continue  # open_clip resizes the short side to 0 pixels, and fails
        expected_CHW = theirs(image) * std_C11 + mean_C11
        assert (ours_CHW - expected_CHW).abs().max() <= LIMIT, (config, image.size)


def test_clips_values_are_open_clips() -> None:
    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    usual = Preprocessing()
    assert usual == preprocessing_from(vars(PreprocessCfg()), "open_clip's default")


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_odd_images_become_open_clips_pixels(
    resize_mode: str, interpolation: str, images: list[Image.Image]
) -> None:
    config = {"resize_mode": resize_mode, "interpolation": interpolation, "fill_color": 99}
    _assert_open_clips(preprocessing_from(config, "the test"), config, images)


def test_the_pixels_of_all_published_weights_are_open_clips(images: list[Image.Image]) -> None:
    configs = {}
    for architecture, tag in published():
        found = named_preprocessing(architecture, tag)
        known = open_clip.get_pretrained_cfg(architecture, tag)
        names = ("mean", "std", "interpolation", "resize_mode")
        config = {name: known[name] for name in names}
        assert {name: found.record()[name] for name in names} == {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.items()
        }
        configs[found] = config
    assert len(published()) >= 196
    assert len(configs) >= 8
    for found, config in configs.items():
        _assert_open_clips(found, config, images)


def test_thin_images_keep_a_pixel_where_open_clip_fails() -> None:
    pixels = TestPixels(SIDE, "longest", fill=3)
    square = np.asarray(pixels.square(Image.new("RGB", (1, 60_000), (200, 100, 50))))
    assert (square[:, SIDE // 2 - 1 : SIDE // 2 + 1] == (200, 100, 50)).all(axis=(0, 2)).sum() == 1
    assert np.unique(square.reshape(-1, 3), axis=0).tolist() == [[3, 3, 3], [200, 100, 50]]


def test_weights_without_a_tag_have_what_the_published_ones_share(capsys: Any) -> None:
    def of_checkpoint(architecture: str, **options: Any) -> Preprocessing:
        return chosen_preprocessing(architecture, {}, has_checkpoint=True, options=options)

    assert (
        of_checkpoint("ViT-B-16-SigLIP") == SIGLIP == named_preprocessing("ViT-B-16-SigLIP", None)
    )
    assert of_checkpoint("ViT-B-16") == of_checkpoint("ViT-S-16") == Preprocessing()
    assert capsys.readouterr().err == ""
    assert of_checkpoint("ViT-H-14") == named_preprocessing("ViT-H-14", None) == Preprocessing()
    message = capsys.readouterr().err
    assert "If it derives from dfn5b, add backbone.resize_mode=squash." in message
    assert of_checkpoint("ViT-L-14") == Preprocessing()
    assert "laion2b_s32b_b82k, add backbone.mean=[0.5,0.5,0.5] " in capsys.readouterr().err
    squashed = of_checkpoint("ViT-H-14", resize_mode="squash")
    assert squashed == Preprocessing("squash") == named_preprocessing("ViT-H-14", "dfn5b")
    assert capsys.readouterr().err == ""
    assert {*published_preprocessing("ViT-L-14").values()} > {Preprocessing()}


def test_what_differs_from_clip_counts_in_fingerprints() -> None:
    assert unusual_pixels(Preprocessing(), "ViT-B-16") == {}
    assert unusual_pixels(named_preprocessing("tiny", "embedded"), "tiny") == {}
    assert unusual_pixels(Preprocessing(fill_color=9), "ViT-B-16") == {}
    assert unusual_pixels(SIGLIP, "ViT-B-16-SigLIP") == {
        "resize_mode": "squash",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    padded = Preprocessing("longest", "bilinear", fill_color=9)
    assert unusual_pixels(padded, "ViT-B-16").keys() == {
        "resize_mode", "interpolation", "fill_color"
    }  # fmt: skip


@pytest.mark.parametrize("preprocess", [Preprocessing(), SIGLIP, Preprocessing(std=(1, 0.3, 0.1))])
def test_a_loaded_model_gives_its_values_back_without_more_digits(preprocess: Any) -> None:
    mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (preprocess.mean, preprocess.std))
    backbone = SimpleNamespace(pixels=preprocess.pixels(SIDE), mean=mean_C11, std=std_C11)
    assert preprocessing_of(backbone) == preprocess


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "L"}, "mode is 'L'; only RGB"),
        ({"resize_mode": "stretch"}, "resize_mode is 'stretch'; it must be shortest or squash"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]; it must be three numbers from 0 to 1"),
        ({"mean": [123.7, 116.3, 103.5]}, "for pixels from 0 to 1"),
        ({"std": [0.5, 0.5, 0]}, "std is .* above 0, at most 1"),
        ({"fill_color": 256}, "fill_color is 256; it must be a whole number from 0 to 255"),
    ],
)
def test_a_configuration_that_open_clip_could_not_use_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^FILE: .*{message}"):
        preprocessing_from(config, "FILE")


def test_a_configuration_may_lack_values_and_have_others() -> None:
    config = {"size": [224, 224], "mean": 0.5, "std": None, "fill_color": 255, "crop": 1}
    found = preprocessing_from(config, "FILE", SIGLIP)
    assert found == replace(SIGLIP, fill_color=255)


def test_a_folder_of_the_embedded_model_has_its_own_card(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint="):
        chosen_preprocessing("tiny", {}, True, {}, tiny_folder=tmp_path)
