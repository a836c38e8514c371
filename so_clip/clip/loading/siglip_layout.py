"""The two layouts of SigLIP's tensors: open_clip's, with timm's image tower, and transformers'.

Source: `SiglipModel` in src/transformers/models/siglip of github.com/huggingface/transformers.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from so_clip.errors import InputError

_BLOCKS = {
    "visual.trunk.blocks": "vision_model.encoder.layers",
    "text.transformer.resblocks": "text_model.encoder.layers",
}
_IN_BLOCKS = {
    "visual.trunk.blocks": {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    "text.transformer.resblocks": {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    },
}
# Query, key and value in one piece.
_FUSED = {"visual.trunk.blocks": "attn.qkv.", "text.transformer.resblocks": "attn.in_proj_"}
_NAMES = {
    "visual.trunk.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.trunk.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual.trunk.norm.weight": "vision_model.post_layernorm.weight",
    "visual.trunk.norm.bias": "vision_model.post_layernorm.bias",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.proj.weight": "vision_model.head.attention.out_proj.weight",
    "visual.trunk.attn_pool.proj.bias": "vision_model.head.attention.out_proj.bias",
    "visual.trunk.attn_pool.norm.weight": "vision_model.head.layernorm.weight",
    "visual.trunk.attn_pool.norm.bias": "vision_model.head.layernorm.bias",
    "visual.trunk.attn_pool.mlp.fc1.weight": "vision_model.head.mlp.fc1.weight",
    "visual.trunk.attn_pool.mlp.fc1.bias": "vision_model.head.mlp.fc1.bias",
    "visual.trunk.attn_pool.mlp.fc2.weight": "vision_model.head.mlp.fc2.weight",
    "visual.trunk.attn_pool.mlp.fc2.bias": "vision_model.head.mlp.fc2.bias",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.text_projection.weight": "text_model.head.weight",
    "text.text_projection.bias": "text_model.head.bias",
}
_HF_NAMES = {new: old for old, new in _NAMES.items()}
_POSITIONS = "visual.trunk.pos_embed"
_HF_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_POOL, _HF_POOL = "visual.trunk.attn_pool", "vision_model.head.attention.in_proj_"
_SCALARS = ("logit_scale", "logit_bias")
_BLOCK = re.compile(r"(visual\.trunk\.blocks|text\.transformer\.resblocks)\.(\d+)\.(.+)")
_HF_BLOCK = re.compile(r"((?:vision|text)_model\.encoder\.layers)\.(\d+)\.(.+?)\.(weight|bias)")
_PARTS, _LEAVES = ("q", "k", "v"), ("weight", "bias")


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are a SigLIP's tensors under transformers' names."""
    return "vision_model.head.probe" in state


def check_fixed_size(state: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError for a SigLIP 2 that takes images of any size.

    Args:
        state: tensors under transformers' names, or others.
        source: their file, for the message.
    """
    patches = state.get("vision_model.embeddings.patch_embedding.weight")
    if patches is not None and patches.ndim == 2:
        raise InputError(
            f"{source}: is SigLIP 2 for images of any size (NaFlex), and open_clip has no such "
            "model. Take a file of a fixed size, such as backbone=siglip2_b16."
        )


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a SigLIP's tensors under the names and in the shapes of transformers' SiglipModel.

    A text tower without a projection gets an identity matrix, since SiglipModel has always one.

    Args:
        state: of open_clip's model. A name that SigLIP does not have raises KeyError.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _NAMES:
            converted[_NAMES[name]] = value
        elif name in _SCALARS:
            converted[name] = value.reshape(1)
        elif name == _POSITIONS:
            converted[_HF_POSITIONS] = value[0]
        elif block := _BLOCK.fullmatch(name):
            converted |= _split(block[1], block[2], block[3], value)
        elif not name.startswith((f"{_POOL}.q.", f"{_POOL}.kv.")):
            raise KeyError(name)
    for leaf in _LEAVES:
        stacked = torch.cat([state[f"{_POOL}.q.{leaf}"], state[f"{_POOL}.kv.{leaf}"]])
        converted[f"{_HF_POOL}{leaf}"] = stacked
    width = len(state["text.ln_final.weight"])
    converted.setdefault("text_model.head.weight", torch.eye(width))
    converted.setdefault("text_model.head.bias", torch.zeros(width))
    return converted


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of transformers' SiglipModel under open_clip's names and in its shapes.

    It inverts `to_hugging_face`. Unknown tensors do not change.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _HF_NAMES:
            converted[_HF_NAMES[name]] = value
        elif name == _HF_POSITIONS:
            converted[_POSITIONS] = value[None]
        elif name in _SCALARS:
            converted[name] = value.reshape(())
        elif name.startswith(_HF_POOL):
            leaf, third = name.removeprefix(_HF_POOL), len(value) // 3
            converted[f"{_POOL}.q.{leaf}"], converted[f"{_POOL}.kv.{leaf}"] = value.split(
                [third, len(value) - third]
            )
        elif not name.endswith(".position_ids") and not _is_third(name):
            converted[_from_block(name)] = value
    return converted | _joined(state)


def _split(blocks: str, number: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    """Return a block's tensor; query, key and value as three."""
    start, fused = f"{_BLOCKS[blocks]}.{number}", _FUSED[blocks]
    if rest.startswith(fused):
        leaf = rest.removeprefix(fused)
        thirds = zip(_PARTS, value.chunk(3), strict=True)
        return {f"{start}.self_attn.{part}_proj.{leaf}": third for part, third in thirds}
    part, _, leaf = rest.rpartition(".")
    return {f"{start}.{_IN_BLOCKS[blocks][part]}.{leaf}": value}


def _from_block(name: str) -> str:
    block = _HF_BLOCK.fullmatch(name)
    if block is None:
        return name
    blocks = next(old for old, new in _BLOCKS.items() if new == block[1])
    parts = {new: old for old, new in _IN_BLOCKS[blocks].items()}
    return f"{blocks}.{block[2]}.{parts.get(block[3], block[3])}.{block[4]}"


def _is_third(name: str) -> bool:
    return re.search(r"\.self_attn\.[qkv]_proj\.", name) is not None


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return query, key and value of each block in one piece."""
    joined = {}
    for name in state:
        block = _HF_BLOCK.fullmatch(name)
        if block is not None and block[3] == "self_attn.q_proj":
            blocks = next(old for old, new in _BLOCKS.items() if new == block[1])
            names = [name.replace("q_proj", f"{part}_proj") for part in _PARTS]
            if all(third in state for third in names):  # else load_weights says what is missing
                thirds = [state[third] for third in names]
                joined[f"{blocks}.{block[2]}.{_FUSED[blocks]}{block[4]}"] = torch.cat(thirds)
    return joined
