"""Methods that are not bound to their classes classify other classes without lasting effect."""

import pytest
import torch

from tests.helpers.battery_parts import images_of, logits_of, trained
from tests.helpers.battery_rows import FEW, ROWS, cases

TEMPLATES = ("a photo of a {}.",)


@pytest.mark.parametrize("method", cases(ROWS, FEW))
def test_a_method_classifies_other_classes_and_then_its_own_again(method):
    model = trained(method).model
    assert model.adapter is not None
    if model.adapter.class_bound:
        return
    classifier, images = model.classifier, torch.stack(images_of(1)[0])
    size = classifier.backbone.image_size
    images_BCHW = images[:, :, :size, :size].contiguous()
    other_PL = classifier.backbone.tokenize(["a photo of a ant.", "a photo of a bee."])
    before_BK = logits_of(model)
    with (
        torch.inference_mode(),
        classifier.using_classes(other_PL, TEMPLATES, model.adapter.prompts_for),
    ):
        logits_BK = classifier(images_BCHW)
    assert logits_BK.shape == (len(images), 2)
    assert logits_BK.isfinite().all()
    assert torch.equal(logits_of(model), before_BK)
