"""The layouts of files with the weights of an image model of timm.

A file has timm's names of tensors, those of DINO's code (the same for a ViT), or those of ViTModel
in Hugging Face's transformers.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from so_clip.clip.image_only import ImageOnly
from so_clip.clip.loading.layouts import without_prefix

_TRUNK = "visual.trunk."
# Names in transformers' ViTModel, and timm's names.
_HF_MARK = "embeddings.patch_embeddings.projection.weight"
_HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_HF_PARTS = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_HF_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_HF_FUSED = re.compile(r"attention\.attention\.(query|key|value)")
# Parts that no feature of ViTModel depends on.
_HF_OUTSIDE = ("pooler.", "classifier.", "embeddings.mask_token")


def timm_layout(
    model: ImageOnly, state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Bring a file's tensors under the model's names and into its shapes, where they are known.

    Prefixes are removed; transformers' names become timm's; a classifier is left out. timm's own
    function then converts older layouts, and interpolates the position embeddings to the model's
    number of patches.

    Returns:
        The tensors, and the names of tensors that do not have the model's prefix.

    Raises:
        InputError: the file holds two models.
    """
    trunk = model.visual.trunk
    names = [name.removeprefix(_TRUNK) for name in model.state_dict()]
    if any(name.endswith(_HF_MARK) for name in state):
        state = from_transformers(state)
    state, left_out = without_prefix(state, names, source)
    state = _without_classifier(trunk, state, names)
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert({name: value.float() for name, value in state.items()}, trunk)
    return {f"{_TRUNK}{name}": value for name, value in state.items()}, left_out


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of transformers' ViTModel under timm's names; others do not change.

    Source: `ViTModel` in src/transformers/models/vit of github.com/huggingface/transformers, the
    layout of facebook/dino-vits16.
    """
    (mark,) = (name for name in state if name.endswith(_HF_MARK))
    prefix = mark.removesuffix(_HF_MARK)
    converted: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for full_name, value in state.items():
        name = full_name.removeprefix(prefix)
        if name.startswith(_HF_OUTSIDE):
            continue
        layer = _HF_LAYER.fullmatch(name)
        part = layer and _HF_FUSED.fullmatch(layer[2])
        if layer and part:
            fused.setdefault(f"blocks.{layer[1]}.attn.qkv.{layer[3]}", {})[part[1]] = value
        elif layer:
            converted[f"blocks.{layer[1]}.{_HF_PARTS.get(layer[2], layer[2])}.{layer[3]}"] = value
        else:
            module, _, leaf = name.rpartition(".")
            renamed = _HF_NAMES.get(name) or f"{_HF_NAMES.get(module, module)}.{leaf}"
            converted[renamed] = value
    for name, parts in fused.items():
        whole = [parts[part] for part in ("query", "key", "value") if part in parts]
        converted[name] = torch.cat(whole)
    return converted


def _without_classifier(
    trunk: Any, state: Mapping[str, Tensor], names: list[str]
) -> dict[str, Tensor]:
    """Leave out the classifier that timm names, unless the model has tensors of that name."""
    parts = trunk.pretrained_cfg.get("classifier") or ()
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    outside = {f"{part}.{leaf}" for part in parts for leaf in ("weight", "bias")} - {*names}
    return {name: value for name, value in state.items() if name not in outside}
