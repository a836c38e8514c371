"""Every family of open_clip's models as a backbone: the numbers of open_clip's own code."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.engine.whole_text import WholePrompts
from so_clip.clip.roles import GROUPS
from so_clip.clip.towers import TOWERS
from tests.helpers.small_families import (
    FAMILIES,
    family_cases,
    new_model,
    small_backbone,
    small_images,
    small_model,
)

PROMPTS = [
    "a photo of a cat.",
    "a photo of a big brown dog.",
    "a cat.",
    "a photo of a cat.",
    "a photo of an apple tree.",
]
MATRICES = {*GROUPS["matrices"]}
ROUNDING = 2e-6  # of unit-length embeddings in float32


def own_image_BD(model: nn.Module, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
    pixels_BCHW = (images_BCHW / 255 - backbone.mean) / backbone.std
    return F.normalize(model.encode_image(pixels_BCHW), dim=-1)


def own_text_KD(model: nn.Module, tokens_KL: Tensor) -> Tensor:
    return F.normalize(model.encode_text(tokens_KL), dim=-1)


@pytest.mark.parametrize("family", family_cases())
def test_logits_are_those_of_open_clip(family: str) -> None:
    backbone, model = small_backbone(family), small_model(family)
    images_BCHW = small_images(backbone, 3)
    tokens_KL = backbone.tokenize(PROMPTS)
    with torch.no_grad():
        image_BD = own_image_BD(model, backbone, images_BCHW)
        class_KD = own_text_KD(model, tokens_KL)
        logits_BK = Classifier(backbone, tokens_KL)(images_BCHW)
    expected_BK = backbone.logit_scale * image_BD @ class_KD.T
    assert (expected_BK[:, 0] - expected_BK[:, 1]).abs().min() > 1e-2
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=100 * ROUNDING)


@pytest.mark.parametrize("family", family_cases(("coca",)))
def test_a_new_model_has_drawn_each_weight(family: str) -> None:
    """Otherwise a weight has what was in the memory, and two models of a seed differ."""
    torch.use_deterministic_algorithms(True)  # then torch fills new tensors with NaN
    try:
        assert torch.empty(1).isnan()
        state = new_model(FAMILIES[family]).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not [name for name, value in state.items() if value.isnan().any()]


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_gradients_are_those_of_open_clip(family: str, memory: Memory) -> None:
    """The prompts are packed once as a whole and once in chunks of one prompt."""
    backbone, model = small_backbone(family), small_model(family).requires_grad_(True)
    backbone.memory = memory
    backbone.requires_grad_(True)
    images_BCHW = small_images(backbone, 3)
    tokens_KL = backbone.tokenize(PROMPTS)
    expected = own_image_BD(model, backbone, images_BCHW), own_text_KD(model, tokens_KL)
    _loss_of(*expected).backward()
    expected_grads = _gradients(model)
    for budget_mib in (64, 1e-6):
        prompts = ClassPrompts(backbone.model, tokens_KL, budget_mib)
        (*_, last) = prompts.chunks
        is_whole = isinstance(last, WholePrompts)
        chunks = last.chunks(backbone.model) if is_whole else prompts.chunks
        assert (len(chunks) > 1) == (budget_mib < 1)
        found = backbone.encode_image(images_BCHW), backbone.encode_text(prompts)
        for value, expected_value in zip(found, expected, strict=True):
            torch.testing.assert_close(value, expected_value, rtol=0, atol=ROUNDING)
        backbone.zero_grad()
        _loss_of(*found).backward()
        grads = _gradients(backbone.model)
        assert grads.keys() == expected_grads.keys()
        for name, grad in grads.items():
            scale = expected_grads[name].abs().max().item()
            torch.testing.assert_close(
                grad,
                expected_grads[name],
                rtol=0,
                atol=1e-4 * scale + 1e-6,
                msg=lambda message, name=name: f"{name}: {message}",
            )


@pytest.mark.parametrize("family", family_cases(("roberta", "mt5", "swin")))
def test_the_role_map_has_every_parameter_with_a_gradient(family: str) -> None:
    """Each has a role and each block has a matrix."""
    backbone = small_backbone(family)
    parts = backbone.role_map()
    assert [part.name for part in parts if not part.roles or "other" in part.roles] == []
    for tower in TOWERS:
        matrices = [part for part in parts if part.roles & MATRICES and part.tower == tower]
        assert {part.block for part in matrices} - {None} == {*range(backbone.block_count(tower))}
        assert {len(part.shape) for part in matrices} <= {2, 4}
    backbone.requires_grad_(True)
    image_BD = backbone.encode_image(small_images(backbone, 2))
    _loss_of(image_BD, backbone.encode_text(backbone.tokenize(PROMPTS))).backward()
    named = backbone.model.named_parameters()
    reached = {name for name, parameter in named if parameter.grad is not None}
    assert {part.name for part in parts} == reached


def _loss_of(image_BD: Tensor, class_KD: Tensor) -> Tensor:
    labels_B = torch.arange(len(image_BD))
    return F.cross_entropy(20 * image_BD @ class_KD.T, labels_B)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients by the names that open_clip's state dict has for the parameters."""
    copy = deepcopy(model).requires_grad_(False)
    for parameter, trained in zip(copy.parameters(), model.parameters(), strict=True):
        parameter.copy_(torch.zeros_like(parameter) if trained.grad is None else trained.grad)
    buffers = {name for name, _ in model.named_buffers()}
    return {name: value for name, value in copy.state_dict().items() if name not in buffers}
