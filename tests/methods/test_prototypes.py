"""Prototypes: class means and scaled cosines, held against plain sums in float64."""

import math

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError
from so_clip.methods.linear_probe import LinearProbe
from so_clip.methods.prototypes import Prototypes
from tests.helpers.image_models import WIDTH, image_backbone
from tests.helpers.tiny_classifiers import Given, classifier, features

LABELS = [0, 0, 0, 1, 2, 2]


def _oracle(f_D, images, labels, scale):
    """Return the logits of one image: scale times its cosine with the mean of each class."""
    logits = []
    for label in sorted(set(labels)):
        members = [image for image, own in zip(images, labels, strict=True) if own == label]
        mean = [math.fsum(column) / len(members) for column in zip(*members, strict=True)]
        length = math.sqrt(math.fsum(value * value for value in mean))
        logits.append(scale * math.fsum(a * b for a, b in zip(f_D, mean, strict=True)) / length)
    return logits


@pytest.mark.parametrize(("scale", "views"), [(10.0, 0), (3.0, 0), (10.0, 4)])
def test_logits_are_scaled_cosines_with_class_means(scale: float, views: int) -> None:
    support, made, image_BD = Given(LABELS), classifier(), features()
    adapter = Prototypes(scale=scale, views=views)
    zero_shot_BK = made.logits(image_BD)
    assert adapter(made) == {}
    torch.testing.assert_close(made.logits(image_BD), zero_shot_BK)
    adapter.start(made, support)
    images_ND = support.view_VND[:views].mean(0) if views else support.centre_VND[0]
    for f_D, found_K in zip(image_BD, made.logits(image_BD), strict=True):
        expected = _oracle(f_D.tolist(), images_ND.tolist(), LABELS, scale)
        assert found_K.tolist() == pytest.approx(expected, abs=1e-10)


def _without_text() -> Classifier:
    backbone = image_backbone().double()
    return Classifier(backbone, backbone.prompt_tokens(["a", "b", "c"]))


def test_a_backbone_without_text_has_prototypes_that_survive_saving() -> None:
    made, adapter, image_BD = _without_text(), Prototypes(), features(dimensions=WIDTH)
    adapter(made)
    adapter.start(made, Given(LABELS, dimensions=WIDTH))
    again = _without_text()
    Prototypes(scale=4)(again)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.logits(image_BD), made.logits(image_BD))
    assert made.logits(image_BD).abs().max() > 1


def test_a_linear_probe_without_text_starts_at_the_prototypes() -> None:
    made, probe, image_BD = _without_text(), LinearProbe(), features(dimensions=WIDTH)
    support = Given(LABELS, dimensions=WIDTH)
    (opened,) = probe(made).values()
    probe.start(made, support)
    prototypes = _without_text()
    adapter = Prototypes(scale=prototypes.backbone.logit_scale)
    adapter(prototypes)
    adapter.start(prototypes, support)
    torch.testing.assert_close(made.logits(image_BD), prototypes.logits(image_BD))
    torch.nn.functional.cross_entropy(made.logits(image_BD), torch.tensor(LABELS[1:])).backward()
    assert opened is made.head.weight
    assert opened.grad.norm() > 0


@pytest.mark.parametrize("option", [{"scale": 0}, {"scale": "big"}, {"views": -1}])
def test_bad_options(option: dict) -> None:
    with pytest.raises(InputError, match=f"adapter.{next(iter(option))}="):
        Prototypes(**option)
