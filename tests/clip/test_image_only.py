"""Image models of timm as backbones: timm's own features and pixels, and no text."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.hub import pretrained_config
from so_clip.clip.pixels import named_preprocessing, preprocessing_of
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from tests.helpers.image_models import WIDTH, image_backbone
from tests.helpers.small_families import small_images


def _own_image_BD(backbone: Backbone, trunk: torch.nn.Module, images_BCHW: Tensor) -> Tensor:
    pixels_BCHW = (images_BCHW.double() / 255 - backbone.mean) / backbone.std
    tokens_BLD = trunk.forward_features(pixels_BCHW)
    return F.normalize(trunk.forward_head(tokens_BLD, pre_logits=True), dim=-1)


@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_features_and_gradients_are_timms_in_float64(memory: Memory) -> None:
    backbone = image_backbone().double().requires_grad_(True)
    trunk = deepcopy(backbone.model.visual.trunk)
    backbone.memory = memory
    images_BCHW = small_images(backbone, 3)
    image_BD, own_BD = (
        backbone.encode_image(images_BCHW),
        _own_image_BD(backbone, trunk, images_BCHW),
    )
    torch.testing.assert_close(image_BD, own_BD, rtol=0, atol=1e-12)
    weight_BD = torch.arange(own_BD.numel(), dtype=torch.float64).view_as(own_BD).cos()
    (image_BD * weight_BD).sum().backward()
    (own_BD * weight_BD).sum().backward()
    own = dict(trunk.named_parameters())
    for part in backbone.role_map():
        gradient = backbone.model.get_parameter(part.name).grad
        expected = own.pop(part.name.removeprefix("visual.trunk.")).grad
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)
    assert not own


def test_an_image_model_has_blocks_and_a_width_and_no_text() -> None:
    backbone = image_backbone()
    assert (backbone.has_text, backbone.context_length, backbone.dimensions) == (False, 0, WIDTH)
    assert (backbone.image_size, backbone.block_count("vision")) == (32, 2)
    roles = {part.role for part in backbone.role_map() if part.block is None}
    assert roles == {"class_token", "position_embedding", "patch_embedding", "bias", "norm"}
    tokens_PL = backbone.prompt_tokens(["a cat", "a dog", "a bird"])
    classifier = Classifier(backbone.copy(), tokens_PL)
    assert (tuple(tokens_PL.shape), classifier.class_count) == ((3, 0), 3)
    for ask in (
        lambda: backbone.tokenize(["a cat"]),
        lambda: backbone.encode_text(torch.zeros(1, 4, dtype=torch.int64)),
        lambda: backbone.tokenizer,
        classifier.classes,
    ):
        with pytest.raises(InputError, match=r"no text tower.*method=prototypes.*backbone=vit_b16"):
            ask()


@pytest.mark.parametrize(
    ("name", "size", "dimensions"),
    [
        ("test_convnext", 160, 64),
        ("test_resnet@64", 64, 96),
        ("test_vit@64", 64, 64),
    ],
)
def test_other_models_of_timm_work(name: str, size: int, dimensions: int) -> None:
    backbone = load_backbone(f"timm:{name}")
    assert (backbone.image_size, backbone.dimensions) == (size, dimensions)
    image_BD = backbone.encode_image(small_images(backbone, 2))
    trunk, images_BCHW = backbone.model.visual.trunk, small_images(backbone, 2)
    own_BD = F.normalize(trunk((images_BCHW / 255 - backbone.mean) / backbone.std), dim=-1)
    torch.testing.assert_close(image_BD, own_BD, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "tag", "message"),
    [
        ("timm:vit_smal_patch16_224", None, r"timm has no such model.*'vit_small_patch16_224'"),
        ("timm:vit_small_patch16_224.dino", None, r"patch16_224 backbone.pretrained=dino"),
        ("timm:vit_small_patch16_224@x", None, r"after @ must be .* 2 to 2048 pixels"),
        ("timm:vit_small_patch16_224@9999", None, r"after @ must be .* 2 to 2048 pixels"),
        ("timm:vit_small_patch16_224@100", None, r"16 pixels do not fill 100.*a multiple of 16"),
        ("timm:vit_small_patch16_224", "dina", r"timm has no such weights.*'dino'"),
        ("timm:vit_base_patch16_sapiens2", None, r"1024x768 pixels; only square"),
        ("timm:test_convnext@2", None, r"does not turn an image of 2 pixels into 64 features"),
        ("timm:xcit_nano_12_p16_224@40", None, r"cannot be built for images of 40 pixels"),
        ("vit_small_patch16_224", None, r"open_clip has no such model.*timm timm:NAME"),
    ],
)  # fmt: skip
def test_bad_names(architecture: str, tag: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(architecture, tag)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    wanted = r"pretrained=dino.*timm/vit_small_patch16_224.dino/model.safetensors"
    with pytest.raises(InputError, match=rf"{wanted}.*backbone.checkpoint=FILE"):
        load_backbone("timm:vit_small_patch16_224@128", "dino")


@pytest.mark.parametrize("size", [(300, 200), (97, 500), (224, 224), (40, 31)])
@pytest.mark.parametrize(
    "values",
    [
        pretrained_config("timm:vit_small_patch16_224", "dino"),
        {"resize_mode": "squash", "interpolation": "bilinear", "crop_share": 0.95},
        {"resize_mode": "longest", "interpolation": "bicubic", "crop_share": 1.0},
    ],
    ids=lambda values: values["resize_mode"],
)
def test_pixels_are_timms(values: dict, size: tuple[int, int]) -> None:
    modes = {"shortest": "center", "squash": "squash", "longest": "border"}
    share = values["crop_share"]
    config = PretrainedCfg(
        input_size=(3, 128, 128), crop_pct=share, interpolation=values["interpolation"],
        crop_mode=modes[values["resize_mode"]], mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    transform = create_transform(**resolve_data_config(pretrained_cfg=config.to_dict()))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = TestPixels(128, values["resize_mode"], values["interpolation"], 0, share).square(image)
    theirs_CHW = transform(image) * 255
    assert np.array_equal(np.asarray(ours), theirs_CHW.round().byte().permute(1, 2, 0).numpy())


def test_published_pixels_are_kept_with_the_crop() -> None:
    dino = named_preprocessing("timm:vit_small_patch16_224@128", "dino")
    assert dino.record() == {
        "resize_mode": "shortest", "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "fill_color": 0, "crop_share": 0.9,
    }  # fmt: skip
    backbone = image_backbone(preprocessing=dino.record())
    assert preprocessing_of(backbone) == dino
    assert backbone.pixels.resized_side == 35
    assert dino.differences(dino) == {}
    assert preprocessing_of(image_backbone()).differences(dino).keys() == {"mean", "std"}
