"""Adapter files of several families: the names in them are those of open_clip's own model."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from so_clip import adapters
from tests.helpers.family_adapters import logits_of, model_of, saved
from tests.helpers.small_families import small_backbone, small_images, small_model

SPLIT = "adapter.split_qkv=true"
CASES = [
    ("eva01", "clip_lora", ()),
    ("coca", "bitfit", ()),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("eva02_b", "clip_lora", ("adapter.dropout=0",)),
            ("bert", "clip_lora", ()),
            ("siglip", "lora", (SPLIT,)),
            ("swin", "lora", (SPLIT, "adapter.interpolation=0.5")),
        )
    ),
]


@pytest.mark.parametrize(("family", "method", "overrides"), CASES)
def test_a_file_gives_the_logits_to_a_classifier_and_to_a_bare_model(
    family: str, method: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    trained = model_of(family, method, overrides)
    adapter = saved(trained, family, method, overrides, tmp_path / "adapter.safetensors")
    assert adapter.about.weights_only
    expected_BK = logits_of(trained)

    fresh = model_of(family, "zero_shot")
    zero_shot_BK = logits_of(fresh)
    assert (expected_BK - zero_shot_BK).abs().max() > 0.1
    adapters.apply(fresh.classifier, adapter)
    assert torch.equal(logits_of(fresh), expected_BK)
    adapters.remove(fresh.classifier)
    assert torch.equal(logits_of(fresh), zero_shot_BK)
    sha256 = small_backbone(family).weights_sha256
    assert fresh.classifier.backbone.weights_sha256 == sha256

    bare, backbone = small_model(family), fresh.classifier.backbone
    adapters.apply(bare, adapter)
    pixels_BCHW = small_images(backbone, 3) / 255
    pixels_BCHW = (pixels_BCHW - backbone.mean) / backbone.std
    with torch.no_grad():
        image_BD = F.normalize(bare.encode_image(pixels_BCHW), dim=-1)
        text_KD = F.normalize(bare.encode_text(fresh.classifier.tokens_PL), dim=-1)
    found_BK = fresh.classifier.backbone.logit_scale * image_BD @ text_KD.T
    torch.testing.assert_close(found_BK, expected_BK, rtol=0, atol=2e-2)
