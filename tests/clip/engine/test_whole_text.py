"""Whole prompts: each different prompt once, in few chunks, with the model's own embeddings."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.engine.whole_text import MIB, WholePrompts, kept_bytes
from tests.helpers import kept_tensors
from tests.helpers.packed_prompts import NO_CHUNKS, assert_close
from tests.helpers.small_families import small_backbone

PROMPTS = ["a cat.", "a photo of a very small dog", "a cat.", "dog", "a drawing of a cat."]
DIFFERENT = 4
# Towers that attend to the padding, and those of Hugging Face, which mask it.
PADDED = ["siglip", "clipa", "mobileclip_l"]
MASKED = ["bert", "roberta", "xlm_roberta", "mt5", "nllb", "coca_roberta"]


def text_parameters(model: Any) -> dict[str, nn.Parameter]:
    others = ("visual.", "logit_", "text_decoder.")
    return {
        name: value
        for name, value in model.named_parameters()
        if not name.startswith(others) and "pooler" not in name
    }


def gradients(model: Any, class_KD: Tensor) -> dict[str, Tensor | None]:
    weights_KD = torch.randn(class_KD.shape, generator=torch.Generator().manual_seed(2))
    parameters = text_parameters(model)
    loss = (F.normalize(class_KD, dim=-1) * weights_KD).sum()
    grads = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    return dict(zip(parameters, grads, strict=True))


def read_by(model: Any) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of all token ids that the text tower reads from now on."""
    shapes: list[tuple[int, ...]] = []
    encode = type(model).encode_text

    def counted(tokens_CL: Tensor) -> Tensor:
        shapes.append(tuple(tokens_CL.shape))
        text_CD: Tensor = encode(model, tokens_CL)
        return text_CD

    model.encode_text = counted
    return shapes


@pytest.mark.parametrize("family", [*PADDED, *MASKED])
def test_embeddings_and_gradients_are_the_models_own(family: str) -> None:
    backbone = small_backbone(family)
    model, tokens_KL = backbone.model, backbone.tokenize(PROMPTS)
    for value in text_parameters(model).values():
        value.requires_grad_(True)
    expected_KD = model.encode_text(tokens_KL)
    expected = gradients(model, expected_KD)
    for budget_mib in (0, NO_CHUNKS):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        read = read_by(model)
        class_KD = prompts(model)
        assert sum(count for count, _ in read) == DIFFERENT
        assert len(read) == (1 if budget_mib else DIFFERENT)
        longest = 7 + {"nllb": 2, "mt5": 1}.get(family, 2)
        lengths = {length for _, length in read}
        assert max(lengths) == (longest if family in MASKED else tokens_KL.shape[1])
        assert len(lengths) == (DIFFERENT if family in MASKED and not budget_mib else 1)
        assert_close(class_KD, expected_KD)
        for name, grad in gradients(model, class_KD).items():
            expected_grad = expected[name]
            if expected_grad is None:
                assert grad is None, name
            else:
                assert grad is not None
                scale = max(1.0, expected_grad.abs().max().item())
                torch.testing.assert_close(grad, expected_grad, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("family", ["vit", "siglip", "xlm_roberta"])
def test_a_class_with_equal_prompts_has_their_mean_and_gradient(family: str) -> None:
    backbone = small_backbone(family)
    tokens_PL = backbone.tokenize(["a cat.", "a cat.", "a dog", "a cat.", "a red cat", "a dog"])
    classifier = Classifier(backbone, tokens_PL, prompts_per_class=2)
    (weight,) = [
        value.requires_grad_(True)
        for name, value in backbone.model.named_parameters()
        if name.endswith(("resblocks.0.mlp.c_fc.weight", "layer.0.output.dense.weight"))
        and not name.startswith("visual.")
    ]
    class_KD = classifier.classes()
    own_PD = F.normalize(backbone.model.encode_text(tokens_PL), dim=-1)
    expected_KD = F.normalize(own_PD.unflatten(0, (3, 2)).mean(dim=1), dim=-1)
    assert_close(class_KD, expected_KD)
    factor_KD = torch.randn(class_KD.shape, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((class_KD * factor_KD).sum(), weight)
    (expected,) = torch.autograd.grad((expected_KD * factor_KD).sum(), weight)
    assert_close(grad, expected)


@pytest.mark.parametrize("trained", ["all", "norms", "last block", "embedding"])
@pytest.mark.parametrize("family", ["siglip", "clipa", "bert", "xlm_roberta", "mt5", "nllb"])
def test_the_estimate_is_near_what_autograd_keeps(family: str, trained: str) -> None:
    backbone = small_backbone(family)
    model, tokens_KL = backbone.model, backbone.tokenize(["a b c d e f g h i j k l m n"] * 8)
    for name, value in text_parameters(model).items():
        is_norm = value.ndim == 1 and name.endswith("weight")
        chosen = {
            "all": True,
            "norms": is_norm,
            "last block": any(f".{block}.1." in name for block in BLOCKS),
            "embedding": "token" in name or "word" in name,
        }
        value.requires_grad_(chosen[trained])
    known = [*model.parameters(), *model.buffers()]
    kept = kept_tensors.kept_bytes(lambda: model.encode_text(tokens_KL), known) / tokens_KL.numel()
    assert 0.5 * kept_bytes(model) < kept < 1.1 * kept_bytes(model)


BLOCKS = ("resblocks", "layer", "block", "layers")


def test_a_frozen_tower_runs_in_few_chunks_of_bounded_size() -> None:
    model = small_backbone("siglip").model
    tokens_KL = torch.randint(2, 300, (5000, 16), generator=torch.Generator().manual_seed(0))
    (whole,) = ClassPrompts(model, tokens_KL, budget_mib=1).chunks
    assert isinstance(whole, WholePrompts)
    assert kept_bytes(model) == 0
    frozen = whole.chunks(model)
    model.text.transformer.requires_grad_(True)
    trained = whole.chunks(model)
    with torch.no_grad():
        assert whole.chunks(model) == frozen
    sizes = [stop - start for start, stop, _ in trained]
    assert [start for start, _, _ in trained[1:]] == [stop for _, stop, _ in trained[:-1]]
    assert sizes[0] <= sizes[1] == sizes[-1] == int(MIB / kept_bytes(model) / 16)
    assert len(frozen) * 4 < len(trained)
