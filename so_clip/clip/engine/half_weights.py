"""Frozen weights in half precision, laid out as in the released code of CLIP-LoRA.

That code loads CLIP as OpenAI does: convolutions, linear layers and both projections into the
embedding are float16, norms and token embeddings float32. Attention that gets updates is replaced
by layers in float32. The towers run under autocast; embeddings, their normalisation and the logits
are float16, outside of autocast. Trained tensors are float32.

Source: github MaxZanella/CLIP-LoRA; the layout is `convert_weights` of github openai/CLIP.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.attention import ExplicitAttention
from so_clip.clip.towers import text_tower
from so_clip.errors import InputError

NAME = "fp16_authors"  # the value of the option `precision`
_PROJECTIONS = ("proj", "text_projection")  # parameters of the towers themselves


def halve_frozen(model: nn.Module) -> None:
    """Turn frozen weights of an open_clip model into float16; see the module.

    Attention that contains a trained tensor keeps its weights.

    Raises:
        InputError: a tower is not a transformer of open_clip, or this device has no kernels for
            float16.
    """
    _check_towers(model)
    _check_kernels(next(model.parameters()).device)
    kept = {
        id(value)
        for attention in model.modules()
        if isinstance(attention, ExplicitAttention)
        and any(value.requires_grad for value in attention.parameters())
        for value in attention.parameters()
    }
    for module, name, value in list(_candidates(model)):
        if not value.requires_grad and id(value) not in kept:
            setattr(module, name, nn.Parameter(value.detach().half(), requires_grad=False))


def unit_half(features: Tensor) -> Tensor:
    """Return features in float16, of unit length, computed as CLIP-LoRA's code does."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.half()
        return features / features.norm(dim=-1, keepdim=True)


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in model.modules():
        matrices = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        names = ("weight", "bias") if matrices else _PROJECTIONS
        for name in names:
            value = module._parameters.get(name)
            if value is not None:
                yield module, name, value


def _check_towers(model: nn.Module) -> None:
    towers = {"vision": getattr(model, "visual", None), "text": text_tower(model)}
    for name, tower in towers.items():
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
        if not blocks or not all(isinstance(block.attn, ExplicitAttention) for block in blocks):
            raise InputError(
                f"precision={NAME}: the {name} tower is a {type(tower).__name__}, and only "
                "transformers of open_clip have this layout. Take a ViT such as backbone=vit_b16, "
                "or precision=fp16."
            )


def _check_kernels(device: torch.device) -> None:
    image = torch.zeros(1, 1, 2, 2, dtype=torch.float16, device=device)
    try:
        row = F.conv2d(image, image).flatten(1)
        row = F.layer_norm(F.linear(row, row), (1,), torch.ones(1, device=device))
        unit_half(row)
    except RuntimeError as error:
        raise InputError(
            f"precision={NAME}: torch {torch.__version__} cannot compute in float16 on {device} "
            f"({error}). Use a GPU, a newer torch, or precision=fp16."
        ) from error
