"""Classes with different numbers of prompts: each class is the mean of its prompts."""

import copy

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.clip.load import load_backbone
from so_clip.clip.prompts import described, templated

DESCRIPTIONS = {"ant": ["an ant", "six legs", "a small ant"], "bee": ["a bee"], "cat": ["x", "y"]}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny", "embedded")


def classifier_of(backbone, order=("ant", "bee", "cat")) -> Classifier:
    prompts = described(order, DESCRIPTIONS)
    tokens_PL = backbone.tokenize(prompts.texts)
    return Classifier(
        copy.deepcopy(backbone),
        tokens_PL,
        prompts_per_class=prompts.per_class,
        templates=prompts.templates,
    )


def test_prompts_are_ordered_by_class():
    prompts = described(("cat", "bee"), DESCRIPTIONS)
    assert prompts == (["x", "y", "a bee"], (2, 1), ())
    assert templated(("a_b", "c"), ("{}!", "the {}")) == (
        ["a b!", "the a b", "c!", "the c"],
        (2, 2),
        ("{}!", "the {}"),
    )


def test_a_class_is_the_mean_of_its_prompts(backbone):
    class_KD = classifier_of(backbone).classes()
    for row_D, texts in zip(class_KD, DESCRIPTIONS.values(), strict=True):
        alone = Classifier(copy.deepcopy(backbone), backbone.tokenize(texts))
        mean_D = alone.classes().double().mean(dim=0)
        torch.testing.assert_close(row_D.double(), mean_D / mean_D.norm(), atol=1e-6, rtol=0)


def test_gradients_reach_all_prompts_and_no_padding(backbone):
    classifier = classifier_of(backbone)
    classifier.requires_grad_(True)
    classifier.classes().sum().backward()
    weight = classifier.backbone.model.token_embedding.weight
    used = torch.unique(classifier.tokens_PL)
    assert torch.isfinite(weight.grad).all()
    assert weight.grad[used[used > 0]].abs().sum(dim=1).min() > 0


def test_other_classes_may_have_other_numbers_of_prompts(backbone):
    classifier = classifier_of(backbone)
    own_KD = classifier.classes()
    other = described(("bee", "ant"), DESCRIPTIONS)
    with classifier.using_classes(
        backbone.tokenize(other.texts), other.templates, prompts_per_class=other.per_class
    ):
        assert classifier.class_count == 2
        torch.testing.assert_close(classifier.classes(), own_KD[[1, 0]])
    assert classifier.prompt_counts == (3, 1, 2)
