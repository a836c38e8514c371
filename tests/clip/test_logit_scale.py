"""The factor and the bias of logits: the weights' own, CLIP's 100, or the user's number."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import factory
from torch import nn

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.load import load_backbone
from so_clip.clip.logit_scale import scale_of
from so_clip.errors import InputError
from so_clip.export.linear_classes import linear_classes
from so_clip.methods.linear_probe import LinearProbe
from so_clip.methods.tip_adapter import TipAdapter
from tests.helpers.small_models import CONFIG

SIGLIP = {"custom_text": True, "init_logit_bias": -10.0}
SCALE, BIAS = 117.33, -12.9
IMAGES_BCHW = torch.randint(
    256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        (math.log(100), 100),
        (4.605468, 100),  # as half precision rounds it
        (math.log(99.6), 100),
        (math.log(99.4), 99.4),
        (math.log(SCALE), SCALE),
        (math.log(1 / 0.07), 14.2857),
    ],
)
def test_a_stored_scale_near_100_is_clips(stored: float, scale: float) -> None:
    assert scale_of(torch.tensor(stored)) == pytest.approx(scale, rel=1e-5)
    if scale == 100:
        assert scale_of(torch.tensor([stored])) == 100


@pytest.mark.parametrize("stored", [100.0, 1 / 0.07, -800.0])
def test_a_stored_number_that_is_no_logarithm_is_refused(stored: float) -> None:
    with pytest.raises(InputError, match=r"logit_scale of the weights is .*=NUMBER"):
        scale_of(torch.tensor(stored))


@pytest.fixture
def siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small", CONFIG)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small-biased", CONFIG | SIGLIP)


def saved(path: Path, **changed: Any) -> Path:
    state = load_backbone("small-biased", explicit=False).model.state_dict()
    values = {"logit_scale": math.log(SCALE), "logit_bias": BIAS} | changed
    for name, value in values.items():
        if value is None:
            del state[name]
        else:
            state[name].fill_(value)
    torch.save(state, path)
    return path


def both(backbone: Backbone) -> tuple[float, float]:
    return backbone.logit_scale, backbone.logit_bias


@pytest.mark.usefixtures("siglip")
def test_auto_takes_the_weights_own_numbers(tmp_path: Path) -> None:
    file = saved(tmp_path / "own.pt")
    assert both(load_backbone("small-biased", checkpoint=file)) == pytest.approx((SCALE, BIAS))
    chosen = load_backbone("small-biased", checkpoint=file, logit_scale=50)
    assert both(chosen) == pytest.approx((50, BIAS))
    assert both(load_backbone("small-biased")) == (100, 0)
    raw = saved(tmp_path / "raw.pt", logit_scale=100)
    assert both(load_backbone("small-biased", checkpoint=raw, logit_scale=100))[0] == 100
    assert both(load_backbone("tiny", "embedded")) == (100, 0)
    neither = saved(tmp_path / "neither.pt", logit_scale=None, logit_bias=None)
    assert both(load_backbone("small-biased", checkpoint=neither)) == (100, 0)


@pytest.mark.usefixtures("siglip")
def test_all_heads_have_the_models_own_logits(tmp_path: Path) -> None:
    backbone = load_backbone("small-biased", checkpoint=saved(tmp_path / "own.pt"))
    tokens_KL = backbone.tokenize(["a cat", "a dog"])
    images_BCHW = (IMAGES_BCHW / 255 - backbone.mean) / backbone.std
    with torch.no_grad():
        image_BD, class_KD, scale, bias = backbone.model(images_BCHW, tokens_KL)
        own_BK = scale * image_BD @ class_KD.T + bias
        for adapter in (None, LinearProbe(), TipAdapter(shots=1)):
            classifier = Classifier(backbone, tokens_KL)
            if adapter is not None:
                adapter(classifier)
            torch.testing.assert_close(classifier(IMAGES_BCHW), own_BK, rtol=0, atol=2e-4)
        linear = linear_classes(Classifier(backbone, tokens_KL), "zero_shot")
    torch.testing.assert_close(linear.bias_K, torch.full((2,), BIAS))
    torch.testing.assert_close(image_BD @ linear.weight_KD.T + BIAS, own_BK, rtol=0, atol=2e-4)
    assert isinstance(backbone.model.logit_bias, nn.Parameter)
    assert not backbone.model.logit_bias.requires_grad
