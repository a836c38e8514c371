"""Every method takes classes with different numbers of training images."""

import pytest
import torch

from so_clip.data.batches import TrainBatches
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from tests.helpers.battery_parts import (
    CPU,
    NAMES,
    SHOTS,
    images_of,
    logits_of,
    model_of,
    settings_of,
)
from tests.helpers.battery_rows import ROWS

# Methods of three kinds are checked all the time; the other methods are slow in sum.
FAST = ("so", "lora", "tip_adapter_f")
METHODS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ROWS]
# The number of images of an even draw.
LABELS = [0, 0, 0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_classes_of_different_sizes(method, tmp_path):
    assert len(LABELS) == SHOTS * len(NAMES)
    settings = settings_of(method, 2)
    model = model_of(settings)
    images, _ = images_of(0)
    side = model.classifier.backbone.image_size
    generator = torch.Generator().manual_seed(settings.data.seed)
    batches = TrainBatches(images, LABELS, 8, side, generator, CPU, scale=(0.8, 1.0), flip=False)
    done = Run(settings, model, RunFolder(tmp_path), batches).adapt(Progress(None, 0))
    logits_BK = logits_of(model)
    assert logits_BK.shape[1] == len(NAMES)
    assert logits_BK.isfinite().all()
    assert all(loss < 100 for loss in done.history.losses)
