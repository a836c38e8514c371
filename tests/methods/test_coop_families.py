"""CoOp and CoCoOp on every kind of text tower, through the model's own forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.prompt_layout import prompt_layout
from so_clip.clip.prompts import class_prompts
from so_clip.clip.towers import text_tower
from so_clip.errors import InputError
from so_clip.methods.coop import CoCoOp, CoOp
from so_clip.methods.coop_prompts import embedding_owner
from tests.helpers.local_tokenizers import MAKERS, local_tokenizer
from tests.helpers.small_families import small_backbone, small_images

NAMES, TEMPLATE = ["dog", "small cat", "cow"], "a photo of a {}."
TOWERS = [
    *("vit", "metaclip2", "coca", "siglip", "clipa", "mobileclip_l"),
    *("bert", "xlm_roberta", "mt5", "nllb"),
]
NO_IMAGES: Any = None


def classifier_of(family: str, budget_mib: float = 1e6) -> Classifier:
    backbone = small_backbone(family)
    tokens_PL = backbone.tokenize(class_prompts(NAMES, [TEMPLATE]))
    return Classifier(backbone, tokens_PL, budget_mib, templates=[TEMPLATE])


def own_class_KD(family: str, tokens_PL: Tensor, context_MW: Tensor) -> Tensor:
    """Encode prompts with a token table that holds the learned vectors in place of other words.

    The words are not in these prompts, and have no special meaning for the tower.
    """
    model = small_backbone(family).model
    owner, name = embedding_owner(text_tower(model))
    embedding = getattr(owner, name)
    used = {*tokens_PL.flatten().tolist()}
    free = [token for token in range(20, 200) if token not in used][: len(context_MW)]
    scale = getattr(embedding, "embed_scale", 1.0)
    with torch.no_grad():
        embedding.weight[free] = context_MW / scale
    words_M = torch.tensor(free)
    rows_PL = torch.where(tokens_PL < 0, words_M[(-1 - tokens_PL).clamp(min=0)], tokens_PL)
    return F.normalize(model.encode_text(rows_PL), dim=-1)


@pytest.mark.parametrize("family", TOWERS)
def test_coop_is_exact(family: str) -> None:
    classifier = classifier_of(family)
    adapter = CoOp(length=3)
    (context_MW,) = adapter(classifier).values()
    adapter.start(classifier, NO_IMAGES)
    with torch.no_grad():
        context_MW.normal_(generator=torch.Generator().manual_seed(1))
        context_MW.div_(3)
        expected_KD = own_class_KD(family, classifier.tokens_PL, context_MW)
    assert (classifier.tokens_PL < 0).sum() == 3 * len(NAMES)
    class_KD = classifier.classes()
    torch.testing.assert_close(class_KD, expected_KD, rtol=0, atol=1e-5)
    factor_KD = torch.randn(class_KD.shape, generator=torch.Generator().manual_seed(2))
    (grad_MW,) = torch.autograd.grad((class_KD * factor_KD).sum(), context_MW)
    assert (grad_MW.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("family", TOWERS)
def test_the_templates_words_are_zero_shot(family: str) -> None:
    classifier = classifier_of(family)
    with torch.no_grad():
        zero_shot_KD = classifier.classes()
        adapter = CoOp(words="a photo of a")
        (context_MW,) = adapter(classifier).values()
        adapter.start(classifier, NO_IMAGES)
        assert len(context_MW) == 4
        torch.testing.assert_close(classifier.classes(), zero_shot_KD, rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget_mib", [0, 1e6])
@pytest.mark.parametrize("family", ["coca", "siglip", "bert", "nllb"])
def test_each_image_shifts_the_context_of_cocoop(family: str, budget_mib: float) -> None:
    classifier = classifier_of(family, budget_mib)
    adapter = CoCoOp()
    parameters = adapter(classifier)
    adapter.start(classifier, NO_IMAGES)
    context_MW, *net = parameters.values()
    with torch.no_grad():
        for value in net:
            value.mul_(3)
    images_BCHW = small_images(classifier.backbone, 2)
    logits_BK = classifier(images_BCHW)
    image_BD = classifier.backbone.encode_image(images_BCHW)
    weight, bias, weight_2, bias_2 = net
    shift_BW = F.linear(F.linear(image_BD, weight, bias).relu(), weight_2, bias_2)
    for image_D, shift_W, logits_K in zip(image_BD, shift_BW, logits_BK, strict=True):
        class_KD = own_class_KD(family, classifier.tokens_PL, context_MW.detach() + shift_W)
        expected_K = 100 * class_KD.detach() @ image_D
        torch.testing.assert_close(logits_K, expected_K, rtol=0, atol=2e-3)
    grads = torch.autograd.grad(logits_BK.square().sum(), [context_MW, *net])
    assert all(grad.abs().sum() > 0 for grad in grads)
    embedding = getattr(*embedding_owner(text_tower(classifier.backbone.model)))
    assert "forward" not in vars(embedding)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_layout_of_every_tokenizer_is_found(kind: str, tmp_path: Path) -> None:
    tokenizer = local_tokenizer(kind, tmp_path, context_length=32)
    layout = prompt_layout(tokenizer)
    assert layout is not None
    start = {"xlm_roberta": 1, "roberta": 1, "clipa": 1, "nllb": 1}.get(kind, 0)
    assert (len(layout.start), layout.ends, layout.length) == (start, 1, 32)
    for text in ("", "a photo of a cat.", "a photo of a café terrace."):
        (prompt,) = tokenizer([text]).tolist()
        found = layout.text_in(prompt)
        inner = tokenizer.tokenizer
        assert found == inner(tokenizer.clean_fn(text), add_special_tokens=False).input_ids
        assert layout.prompt(found) == prompt


def test_a_tokenizer_with_padding_at_the_start_is_refused(tmp_path: Path) -> None:
    tokenizer = local_tokenizer("roberta", tmp_path, context_length=16)
    tokenizer.tokenizer.padding_side = "left"
    backbone = small_backbone("roberta")
    backbone._tokenizer = tokenizer
    classifier = Classifier(backbone, backbone.tokenize(["a cat"]), templates=["a {}"])
    with pytest.raises(InputError, match=r"the tokenizer of small roberta.*Take another model"):
        CoOp()(classifier)
