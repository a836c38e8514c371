"""Every layer whose weight an embedding depends on is called, in every family of open_clip.

A layer whose weight is only read could be wrapped or replaced, and trained, without an effect.
"""

import pytest
from torch import Tensor, nn

from tests.helpers.small_families import FAMILIES, small_backbone, small_images, small_model

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def uncalled(model: nn.Module, pixels_BCHW: Tensor, tokens_KL: Tensor) -> set[str]:
    """Return the names of layers whose weight has a gradient although they are not called."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    called: set[nn.Module] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda module, _inputs: called.add(module))
        for layer in layers.values()
    ]
    model.requires_grad_(True)
    image_BD, text_KD = model.encode_image(pixels_BCHW), model.encode_text(tokens_KL)
    (image_BD.square().sum() + text_KD.square().sum()).backward()
    for hook in hooks:
        hook.remove()
    reached = {name for name, layer in layers.items() if layer.weight.grad is not None}
    return {name for name in reached if layers[name] not in called}


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_that_an_embedding_depends_on_is_called(family: str) -> None:
    backbone = small_backbone(family)
    pixels_BCHW = small_images(backbone, 1) / 255
    tokens_KL = backbone.tokenize(["a photo of a dog"])
    assert uncalled(backbone.model, pixels_BCHW, tokens_KL) == set()


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("vit", "visual.transformer.resblocks.0.attn.out_proj"),
        ("coca", "visual.attn_pool.attn.out_proj"),
        ("resnet", "visual.attnpool.q_proj"),
        ("eva01", "visual.trunk.blocks.1.attn.qkv"),
    ],
)
def test_without_explicit_attention_layers_are_only_read(family: str, layer: str) -> None:
    backbone = small_backbone(family)
    model = small_model(family)
    pixels_BCHW = small_images(backbone, 1) / 255
    tokens_KL = backbone.tokenize(["a photo of a dog"])
    assert layer in uncalled(model, pixels_BCHW, tokens_KL)
