"""`using_classes` replaces prompts and classes for a while and then restores them."""

import pytest
import torch
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.heads import CosineHead, Head
from so_clip.methods.adapter import Adapter
from tests.helpers.small_models import small_backbone

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")
IMAGES_BCHW = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def _prompts(*names: str, templates: tuple[str, ...] = TEMPLATES) -> list[str]:
    return [template.replace("{}", name) for name in names for template in templates]


@pytest.fixture
def classifier() -> Classifier:
    backbone = small_backbone()
    explicit_attention(backbone.model)
    tokens_PL = backbone.tokenize(_prompts("dog", "cat", "cow"))
    return Classifier(backbone, tokens_PL, prompts_per_class=2, templates=TEMPLATES)


def _logits(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        logits_BK: Tensor = classifier(IMAGES_BCHW)
    return logits_BK


def test_logits_are_those_of_a_classifier_made_with_the_other_prompts(classifier):
    before_BK = _logits(classifier)
    other_PL = classifier.backbone.tokenize(_prompts("ant", "bee", templates=("{}!",)))
    other = small_backbone()
    explicit_attention(other.model)
    expected_BK = _logits(Classifier(other, other_PL))
    with classifier.using_classes(other_PL, ("{}!",)):
        assert classifier.class_count == 2
        assert (classifier.templates, set(classifier.prompt_counts)) == (("{}!",), {1})
        torch.testing.assert_close(_logits(classifier), expected_BK)
    assert classifier.prompt_counts == (2, 2, 2)
    assert classifier.templates == TEMPLATES
    assert torch.equal(_logits(classifier), before_BK)


def test_all_is_as_before_after_an_error(classifier):
    before = classifier.prompts, classifier.head, classifier.tokens_PL
    other_PL = classifier.backbone.tokenize(["an ant"])
    with pytest.raises(RuntimeError), classifier.using_classes(other_PL, ("{}",)):
        raise RuntimeError
    assert all(
        a is b
        for a, b in zip(
            before, (classifier.prompts, classifier.head, classifier.tokens_PL), strict=True
        )
    )


def test_an_adapter_may_rewrite_the_prompts_knowing_their_templates(classifier):
    class Shouting(Adapter):
        def prompts_for(self, classifier: Classifier, tokens_PL: Tensor) -> Tensor:
            seen.append(classifier.templates)
            return loud_PL

    seen: list[tuple[str, ...]] = []
    tokenize = classifier.backbone.tokenize
    quiet_PL, loud_PL = tokenize(["ant", "bee"]), tokenize(["an ant!", "a bee!"])
    with classifier.using_classes(quiet_PL, ("{}",), Shouting().prompts_for):
        assert classifier.tokens_PL is loud_PL
    assert seen == [("{}",)]
    assert torch.equal(Adapter().prompts_for(classifier, quiet_PL), quiet_PL)


def test_a_head_may_have_another_for_other_classes(classifier):
    class OwnClasses(Head):
        def for_other_classes(self) -> Head:
            return CosineHead(self.scale)

    classifier.head = OwnClasses(100.0)
    with classifier.using_classes(classifier.backbone.tokenize(["ant"]), ("{}",)):
        assert isinstance(classifier.head, CosineHead)
        assert _logits(classifier).shape == (2, 1)
    assert isinstance(classifier.head, OwnClasses)
