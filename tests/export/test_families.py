"""Exported checkpoints of several families load into open_clip's own models."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from so_clip import adapters
from so_clip.errors import InputError
from so_clip.export.sizes import OPEN_CLIP, PEFT
from so_clip.export.write import make_export
from tests.helpers.family_adapters import logits_of, model_of, saved
from tests.helpers.small_families import small_backbone, small_images, small_model


@pytest.mark.parametrize(
    ("family", "method", "overrides"),
    [
        ("eva01", "clip_lora", ()),
        pytest.param("eva02_b", "clip_lora", (), marks=pytest.mark.slow),
        pytest.param("siglip", "lora", ("adapter.split_qkv=true",), marks=pytest.mark.slow),
    ],
)
def test_open_clip_loads_the_merged_weights(
    family: str, method: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    trained = model_of(family, method, overrides)
    adapter = saved(trained, family, method, overrides, tmp_path / "adapter.safetensors")
    expected_BK = logits_of(trained)

    restored = adapters.restore(adapter, device="cpu", backbone=small_backbone(family))
    export = make_export(adapter, restored, OPEN_CLIP, "model.pt")
    export.content.write(tmp_path)
    with pytest.raises(InputError, match="only open_clip knows"):
        make_export(adapter, restored, PEFT, "")

    bare, backbone = small_model(family), small_backbone(family)
    bare.load_state_dict(torch.load(tmp_path / "model.pt"))
    pixels_BCHW = small_images(backbone, 3) / 255
    pixels_BCHW = (pixels_BCHW - backbone.mean) / backbone.std
    with torch.no_grad():
        image_BD = F.normalize(bare.encode_image(pixels_BCHW), dim=-1)
        text_KD = F.normalize(bare.encode_text(trained.classifier.tokens_PL), dim=-1)
    found_BK = bare.logit_scale.exp() * image_BD @ text_KD.T
    torch.testing.assert_close(found_BK, expected_BK, rtol=0, atol=2e-2)
