"""Files with the weights of timm's image models: timm's, DINO's and transformers' layouts."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from so_clip.clip.load import load_backbone
from so_clip.errors import InputError
from tests.helpers.image_models import NAME, WIDTH, image_backbone, narrow
from tests.helpers.small_families import small_images

TRUNK = "visual.trunk."


def _trunk_state() -> dict[str, Tensor]:
    state = image_backbone().model.state_dict()
    return {name.removeprefix(TRUNK): value.clone() for name, value in state.items()}


def _write(layout: str, state: Mapping[str, Tensor], folder: Path) -> Path:
    file = folder / f"{layout}.pth"
    if layout == "timm":
        classifier = {"head.weight": torch.ones(10, WIDTH), "head.bias": torch.ones(10)}
        save_file({**state, **classifier}, file)
    elif layout == "dino":
        torch.save(dict(state), file)
    elif layout == "teacher":  # a training checkpoint of DINO, with the head of its loss
        teacher = {f"module.backbone.{name}": value for name, value in state.items()}
        head = {"module.head.mlp.0.weight": torch.ones(2, 2)}
        torch.save({"teacher": teacher | head, "epoch": 7}, file)
    else:
        save_file({f"{TRUNK}{name}": value for name, value in state.items()}, file)
    return file


@pytest.mark.parametrize("layout", ["timm", "dino", "teacher", "whole"])
@pytest.mark.filterwarnings("ignore:.*tensors outside the model are left out.*head.mlp")
def test_every_layout_gives_the_same_weights(layout: str, tmp_path: Path) -> None:
    file = _write(layout, _trunk_state(), tmp_path)
    loaded = image_backbone(checkpoint=file)
    assert loaded.weights_sha256 == image_backbone().weights_sha256
    assert loaded.description == f"{NAME} ({file})"
    assert loaded.logit_scale == 100


def test_a_vit_of_transformers_has_the_same_features(tmp_path: Path) -> None:
    modeling = pytest.importorskip("transformers.models.vit.modeling_vit")
    config = modeling.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * WIDTH,
        image_size=32, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(3)
    model = modeling.ViTModel(config).eval()
    for value in model.parameters():
        value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(tmp_path)
    backbone = image_backbone(checkpoint=tmp_path / "model.safetensors")
    images_BCHW = small_images(backbone, 2)
    with torch.no_grad():
        pixels_BCHW = (images_BCHW / 255 - backbone.mean) / backbone.std
        expected_BD = F.normalize(model(pixels_BCHW).last_hidden_state[:, 0], dim=-1)
        found_BD = backbone.encode_image(images_BCHW)
    torch.testing.assert_close(found_BD, expected_BD, rtol=0, atol=2e-6)


def test_positions_of_another_size_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    file = _write("dino", _trunk_state(), tmp_path)
    larger = image_backbone("timm:vit_tiny_patch16_224@80", checkpoint=file)
    with narrow():
        theirs = timm.create_model(
            "vit_tiny_patch16_224", pretrained=True, num_classes=0, img_size=80,
            pretrained_cfg_overlay={"file": str(file), "url": "", "hf_hub_id": None},
        )  # fmt: skip
    assert larger.model.visual.trunk.pos_embed.shape == (1, 26, WIDTH)
    assert torch.equal(larger.model.visual.trunk.pos_embed, theirs.pos_embed)


def _without_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "norm.weight"}


def _not_finite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"norm.weight": torch.full((WIDTH,), torch.nan)}


def _more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"more": torch.ones(1)}


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        (NAME, _without_norm, r"1 missing \(visual.trunk.norm.weight\).*architecture=timm:NAME"),
        (NAME, _not_finite, r"visual.trunk.norm.weight holds values that are not finite"),
        (NAME, _more, r"1 unexpected \(visual.trunk.more\)"),
        ("timm:resnet10t", dict, r"does not fit the backbone.*architecture=timm:NAME"),
        ("tiny", dict, r"a vision transformer of timm or DINO.*Load it with backbone=dino_s16"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(architecture: str, change, message: str, tmp_path: Path) -> None:
    file = _write("dino", change(_trunk_state()), tmp_path)
    with narrow() if architecture == NAME else torch.no_grad(), pytest.raises(InputError) as caught:
        load_backbone(architecture, checkpoint=file)
    assert caught.match(message)
