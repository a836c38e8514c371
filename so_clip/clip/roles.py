"""The role map: what each parameter of a CLIP model is, for every family of open_clip.

open_clip, timm and Hugging Face spell the same parts differently: query, key and value are
`attn.in_proj_weight`, `attn.qkv.weight` or three matrices. Methods choose parts by their roles:

attention_in      matrices of query, key and value, in one piece or three
query, key, value    one of the three, if it is a matrix of its own
attention_out     attention's output projection
mlp_in, mlp_out   matrices of the MLP before and after its activation; gated ones have two before
convolution       other convolutions, [O, I, k, k], and Swin's merging of patches
norm              gains and biases of normalisation layers
bias              all biases, also those of normalisation layers
patch_embedding   the stem, from pixels to the first tokens
token_embedding, position_embedding, class_token, layer_scale
pooling           the head that pools tokens: attention pooling, a pooler
projection        the last matrix, to the embedding
embedding         tables of tokens, positions and token types in an encoder of sentences; no CLIP
                  has it, so the group `matrices` of a CLIP has no tables
head              the classifier of an encoder of sentences; no CLIP has it
other             what no family of open_clip has
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from so_clip.clip.reach import reached
from so_clip.clip.towers import STEM, TOWERS, Tower, named_blocks, tower_of
from so_clip.errors import InputError, nearest

ROLES = (
    "attention_in",
    "query",
    "key",
    "value",
    "attention_out",
    "mlp_in",
    "mlp_out",
    "convolution",
    "norm",
    "bias",
    "patch_embedding",
    "token_embedding",
    "position_embedding",
    "embedding",
    "class_token",
    "layer_scale",
    "pooling",
    "projection",
    "head",
    "other",
)
# Roles of a projection that is a matrix of its own.
SPLIT = ("query", "key", "value")
# A group takes those of its roles that a model has.
GROUPS = {
    "attention": ("attention_in", "attention_out"),
    "mlp": ("mlp_in", "mlp_out"),
    "matrices": ("attention_in", "attention_out", "mlp_in", "mlp_out", "convolution", "embedding"),
    "everything": ROLES,
}

_ATTENTION = r"(?:attn|attention|self|self_attn|SelfAttention|token_mixer)\."
# A parameter's name without its ending "weight"; the first pattern that matches an end decides.
_NAMES = tuple(
    (re.compile(rf"(?:^|\.)(?:{names})$"), roles)
    for names, roles in (
        (r"(?:attn_?pool|pooler)\..+", ("pooling",)),
        (r"visual\.(?:trunk\.)?(?:head|proj)(?:\..+)?", ("projection",)),
        (r"text_projection|text\.proj(?:\..+)?", ("projection",)),
        (r"\w*(?:rel_pos|relative|position|pos_emb|pos_enc)\w*(?:\..+)?", ("position_embedding",)),
        (r"(?:class_embedding|cls_token|cls_emb|reg_token|dist_token)", ("class_token",)),
        (r"token_embedding|\w+_embeddings|shared|embed_tokens", ("token_embedding",)),
        (r"gamma", ("layer_scale",)),
        (_ATTENTION + r"(?:in_proj|in_proj_weight|qkv)", ("attention_in",)),
        (_ATTENTION + r"(?:qkv\.)?(?:q|q_proj|query)", ("attention_in", "query")),
        (_ATTENTION + r"(?:qkv\.)?(?:k|k_proj|key)", ("attention_in", "key")),
        (_ATTENTION + r"(?:qkv\.)?(?:v|v_proj|value)", ("attention_in", "value")),
        (_ATTENTION + r"(?:proj|out_proj|o|output\.dense)", ("attention_out",)),
        (r"mlp\.(?:c_fc|fc1|fc1_[gx]|w[01])|intermediate\.dense", ("mlp_in",)),
        (r"DenseReluDense\.wi(?:_\d)?|layers\.\d+\.fc1", ("mlp_in",)),
        (r"mlp\.(?:c_proj|fc2|w2)|output\.dense", ("mlp_out",)),
        (r"DenseReluDense\.wo|layers\.\d+\.fc2", ("mlp_out",)),
        (r"downsample\.reduction", ("convolution",)),
    )
)


@dataclass(frozen=True)
class Part:
    """A parameter of a model.

    Attributes:
        name: in the model's named_parameters().
        tower: vision | text.
        block: the number of its residual block, from input to output; None outside the blocks.
        roles: see this module; a norm's bias is `norm` and `bias`.
        shape: of the tensor.
    """

    name: str
    tower: Tower
    block: int | None
    roles: frozenset[str]
    shape: tuple[int, ...]

    @property
    def role(self) -> str:
        """The role that names it best: `query` before `attention_in`, `norm` before `bias`."""
        return next(role for role in (*SPLIT, *ROLES) if role in self.roles)


def role_map(model: nn.Module) -> list[Part]:
    """Return all parameters that an embedding depends on, in the model's order.

    Args:
        model: an open_clip model in evaluation mode, as loaded: without an adapter's layers.
    """
    used = reached(model)
    blocks = {tower: [name for name, _ in named_blocks(model, tower)] for tower in TOWERS}
    return [
        Part(
            name=name,
            tower=tower_of(name),
            block=block_of(name, blocks[tower_of(name)]),
            roles=roles_of(model, name),
            shape=tuple(value.shape),
        )
        for name, value in model.named_parameters()
        if name in used
    ]


def named_roles(roles: Iterable[str], option: str = "adapter.roles") -> frozenset[str]:
    """Return the roles that names of roles and groups stand for.

    Args:
        roles: the names.
        option: where they come from, for messages.

    Raises:
        InputError: there is no such role or group.
    """
    known = {role: (role,) for role in ROLES} | GROUPS
    for role in roles:
        if role not in known:
            raise InputError(
                f"{option}: {role!r} is no role. The groups are {', '.join(GROUPS)}; the "
                f"roles are {', '.join(ROLES)}.{nearest(str(role), known)}"
            )
    return frozenset(member for role in roles for member in known[role])


def block_of(name: str, blocks: list[str]) -> int | None:
    """Return the number of the block that a parameter is in; None outside of all."""
    return next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), None)


def roles_of(model: nn.Module, name: str) -> frozenset[str]:
    """Return the roles of a parameter, by its name and its module."""
    path, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(path)
    own = path if leaf == "weight" else name
    named = next((roles for pattern, roles in _NAMES if pattern.search(own)), ())
    pooling = ("pooling",) if "pooling" in named else ()
    if "Norm" in type(module).__name__:
        return frozenset(("norm", *pooling, *(("bias",) if leaf == "bias" else ())))
    if leaf == "bias" or leaf.endswith("_bias"):
        return frozenset(("bias", *pooling))
    if STEM.search(name):
        return frozenset(("patch_embedding",))
    if named:
        return frozenset(named)
    return frozenset(("convolution" if isinstance(module, nn.Conv2d) else "other",))
