"""The number of trained parameters of ViT-B/16, in the model of a forecast."""

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.forecast.predict import fake_model

# EuroSAT has 10 classes, ViT-B/16 512 dimensions.
COUNTS = {
    "tip_adapter": 0,
    "tip_adapter_f": 4 * 10 * 512,
    "linear_probe": 10 * 512,
    "lp_plus_plus": 10 * 512 + 10 + 10,  # w, b and the descent of alpha
    "clap": 10 * 512,
    "two_stage": 2 * 24 * (768 + 512) + 10 * 512,  # the blocks' ln_1 and ln_2
    "wise_ft": 122_683_392,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", COUNTS)
def test_trained_parameters_of_vit_b16_on_eurosat(method):
    chosen = [f"method={method}", "dataset=eurosat", "backbone=vit_b16", "shots=4"]
    settings = from_config(compose([*chosen, "precision=fp32"]))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(settings, load_card("eurosat"), mode)
    assert sum(value.numel() for value in model.parameters.values()) == COUNTS[method]
