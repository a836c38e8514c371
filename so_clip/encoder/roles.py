"""The role map of an encoder for sequence classification, for every family of transformers.

The roles are those of `so_clip.clip.roles`. No CLIP has two of them:

embedding   tables of tokens, positions and token types, and factors of such a table
head        the classifier; with `pooling` it is all that is new for a task
"""

import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from so_clip.clip.reach import leaves_of
from so_clip.clip.roles import Part, block_of, roles_of
from so_clip.clip.towers import block_lists

# Names that no text tower of open_clip has; the first pattern that matches an end decides.
_NAMES = tuple(
    (re.compile(rf"(?:^|\.)(?:{names})$"), roles)
    for names, roles in (
        (r"pooler(?:\..+)?", ("pooling",)),
        (r"embeddings_project|embedding_hidden_mapping_in", ("embedding",)),
        (r"rel_embeddings", ("position_embedding", "embedding")),
        (r"(?:q_lin|query_proj)", ("attention_in", "query")),
        (r"(?:k_lin|key_proj)", ("attention_in", "key")),
        (r"(?:v_lin|value_proj)", ("attention_in", "value")),
        (r"Wqkv|qkv_proj|pos(?:_\w+)?_proj", ("attention_in",)),
        (r"out_lin|attn\.Wo|self_attn\.o_proj|attention\.dense", ("attention_out",)),
        (r"ffns?(?:\.\d+)?\.lin1|ffn|mlp\.(?:Wi|gate_proj|up_proj|up_gate_proj)", ("mlp_in",)),
        (r"ffns?(?:\.\d+)?\.lin2|ffn_output|mlp\.(?:Wo|down_proj)", ("mlp_out",)),
        (r"conv\.conv", ("convolution",)),
    )
)
# Parts outside the encoder between its output and the classifier.
_POOLERS = re.compile(r"(?:pooler|pre_classifier|head|sequence_summary)\.")


def encoder_roles(model: Any, inputs: dict[str, Tensor]) -> list[Part]:
    """Return all parameters that the logits depend on, in the model's order.

    Args:
        model: a model of transformers for sequence classification in evaluation mode, real or
            fake, without an adapter's layers.
        inputs: a small batch, for the model's forward pass.
    """
    used = _reached(model, inputs)
    blocks = [name for name, _ in encoder_blocks(model)]
    return [
        Part(
            name=name,
            tower="text",
            block=block_of(name, blocks),
            roles=_roles(model, name, value),
            shape=tuple(value.shape),
        )
        for name, value in model.named_parameters()
        if name in used
    ]


def encoder_blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """Return an encoder's residual blocks and their names, from input to output.

    A block that ALBERT repeats is there once.
    """
    return [
        (f"{name}.{number}", block)
        for name, blocks in block_lists(model).items()
        for number, block in blocks.named_children()
    ]


def roles_of_task(model: Any, name: str) -> frozenset[str]:
    """Return `pooling` or `head` for a parameter that can be new in a task; no role for others."""
    return _roles(model, name, model.get_parameter(name)) & {"pooling", "head"}


def _reached(model: Any, inputs: dict[str, Tensor]) -> frozenset[str]:
    leaves = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    first = next(iter(leaves.values()))
    with first.fake_mode if isinstance(first, FakeTensor) else nullcontext(), torch.enable_grad():
        output = functional_call(model, leaves, kwargs={**inputs, "return_dict": True})
        found = leaves_of([output.logits])
    return frozenset(name for name, value in leaves.items() if id(value) in found)


def _roles(model: Any, name: str, value: Tensor) -> frozenset[str]:
    path, _, leaf = name.rpartition(".")
    roles = _named_roles(model, name, path if leaf == "weight" else name)
    if "Norm" in type(model.get_submodule(path)).__name__:
        kept = roles & {"head", "pooling"}
        return kept | {"norm"} | ({"bias"} if leaf == "bias" else frozenset())
    if leaf == "bias" or (leaf.endswith("_bias") and value.ndim == 1):
        return roles & {"head", "pooling"} | {"bias"}
    if isinstance(model.get_submodule(path), nn.Embedding):
        return roles - {"other"} | {"embedding"}
    return roles


def _named_roles(model: Any, name: str, own: str) -> frozenset[str]:
    if not name.startswith(f"{model.base_model_prefix}."):
        return frozenset(("pooling",) if _POOLERS.match(name) else ("head",))
    named = next((roles for pattern, roles in _NAMES if pattern.search(own)), None)
    return roles_of(model, name) if named is None else frozenset(named)
