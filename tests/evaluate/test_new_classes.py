"""Methods that are not bound to their classes classify other classes without lasting effect."""

import pytest
import torch

from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from tests.helpers.battery_parts import batches_of, images_of, logits_of, model_of, settings_of
from tests.helpers.battery_rows import ROWS

TEMPLATES = ("a photo of a {}.",)


@pytest.mark.parametrize("method", ROWS)
def test_a_method_classifies_other_classes_and_then_its_own_again(method, tmp_path):
    settings = settings_of(method, 2)
    model = model_of(settings)
    assert model.adapter is not None
    if model.adapter.class_bound:
        return
    classifier, images = model.classifier, torch.stack(images_of(1)[0])
    size = classifier.backbone.image_size
    images_BCHW = images[:, :, :size, :size].contiguous()
    other_PL = classifier.backbone.tokenize(["a photo of a ant.", "a photo of a bee."])
    run = Run(settings, model, RunFolder(tmp_path), batches_of(settings, model))
    run.adapt(Progress(None, 0))
    before_BK = logits_of(model)
    with (
        torch.inference_mode(),
        classifier.using_classes(other_PL, TEMPLATES, model.adapter.prompts_for),
    ):
        logits_BK = classifier(images_BCHW)
    assert logits_BK.shape == (len(images), 2)
    assert logits_BK.isfinite().all()
    assert torch.equal(logits_of(model), before_BK)
