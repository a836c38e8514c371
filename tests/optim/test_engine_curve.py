"""A hundred steps on digits: the engine has the losses of the plain path.

The plain path is nn.MultiheadAttention, whole prompts and dense gradients.
"""

from typing import Any

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.clip.load import load_backbone
from so_clip.clip.prompts import class_prompts
from so_clip.data.batches import TrainBatches
from so_clip.data.images import load_uint8
from so_clip.data.run_data import gather
from so_clip.methods.weights import Weights
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.runtime.precision import Precision
from so_clip.train import Loop, train
from tests.helpers.choices import data_choice

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
STEPS = 100
NO_CHUNKS = 1e9


@pytest.fixture(scope="module")
def digits() -> Any:
    return gather(data_choice("digits"))


def _losses(digits: Any, engine: bool, lr: float, density_ratio: float) -> list[float]:
    backbone = load_backbone(
        "tiny", pretrained="embedded", explicit=engine, memory="balanced" if engine else "fast"
    )
    templates = digits.card.template_sets["plain"]
    tokens_KL = backbone.tokenize(class_prompts(digits.splits.class_names, templates))
    options = {} if engine else {"text_budget_mib": NO_CHUNKS, "share_prefixes": False}
    classifier = Classifier(backbone, tokens_KL, **options)
    parameters = Weights()(classifier)
    optimizer = SO(parameters.values(), lr=lr, density_ratio=density_ratio, seed=1)
    if engine:
        sampled_gradients(classifier, optimizer, always=True)
    examples = digits.few_shot.train
    batches = TrainBatches(
        load_uint8(digits.images, examples),
        [example.label for example in examples],
        32,
        backbone.image_size,
        torch.Generator().manual_seed(1),
        CPU,
    )
    watched = Precision("fp32", CPU), PeakMemory(classifier, optimizer, CPU)
    loop = Loop(classifier, batches, optimizer, *watched)
    return train(loop, max_steps=STEPS, stop_loss=0, lr_min=1e-6).losses


# The paper's values, and larger ones that change the losses clearly.
@pytest.mark.parametrize(("lr", "density_ratio"), [(2e-4, 5e-4), (1e-3, 5e-3)])
def test_the_engine_has_the_losses_of_the_plain_path(digits, lr, density_ratio):
    plain = _losses(digits, False, lr, density_ratio)
    engine = _losses(digits, True, lr, density_ratio)
    assert len(plain) == len(engine) == STEPS
    furthest = max(abs(a - b) for a, b in zip(plain, engine, strict=True))
    assert furthest < 1e-4
    moved = max(plain) - min(plain)
    assert moved > 100 * furthest, "nothing was learned that could differ"
