"""Attention with nn.Linear modules as projections, so that they can be trained one by one.

`nn.MultiheadAttention` and open_clip's own `Attention` hide their projections: no code can replace,
wrap or hook them. Two other kinds hold linear layers, but read their weights without a call of the
layers: the attention pooling of open_clip's ResNets, and timm's EVA with biases of query and value
alone. A layer put around such a layer would be trained without an effect. After
`explicit_attention`, every projection is a module, and it is called. The call, the numbers and the
names in state dicts stay those of open_clip and timm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.pooling_attention import explicit_pooling_2d
from so_clip.clip.engine.recompute import mark_saved_anyway
from so_clip.clip.engine.split_projection import PARTS, SplitProjection, linear
from so_clip.clip.towers import text_tower
from so_clip.errors import InputError

# The norms of query and key in open_clip's Attention, in the spelling of each version.
_QUERY_NORMS, _KEY_NORMS = ("ln_q", "q_norm"), ("ln_k", "k_norm")


class ExplicitAttention(nn.Module):
    """Multi-head attention with torch's fused kernel, to replace an attention of open_clip.

    Its parameters are `in_proj.weight` [3 D, D] and `in_proj.bias` [3 D] (query, key and value,
    stacked), `out_proj.weight` and `out_proj.bias`. After `split`, `q_proj`, `k_proj` and `v_proj`
    replace `in_proj`. Attention over keys of another width has these from the beginning, and one
    `in_proj_bias`. State dicts have the names and layout of the replaced class in all cases.

    Args:
        source: the attention to replace, without dropout: an nn.MultiheadAttention, or the
            `Attention` of open_clip, where norms of query and key are kept. Its parameters are
            reused, not copied.
        causal: any mask given to `forward` is the causal one; its entries are not read.

    Raises:
        InputError: `source` has options that are not computed here.
    """

    def __init__(self, source: Any, causal: bool = False) -> None:
        super().__init__()
        _check_options(source)
        self.heads = source.num_heads
        self.causal = causal
        self.returns_pair = isinstance(source, nn.MultiheadAttention)
        weight, bias = source.in_proj_weight, getattr(source, "in_proj_bias", None)
        self.one_matrix = weight is not None
        self.in_proj: nn.Linear | None = linear(weight, bias) if self.one_matrix else None
        self.in_proj_bias = None if self.one_matrix else bias
        if not self.one_matrix:
            for part in PARTS:
                setattr(self, part, linear(getattr(source, f"{part}_weight"), None))
        self.query_norm = self._keep_norm(source, _QUERY_NORMS)
        self.key_norm = self._keep_norm(source, _KEY_NORMS)
        self.out_proj = linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)
        self.register_state_dict_post_hook(_save_as_source)
        self.register_load_state_dict_pre_hook(_load_from_source)

    def _keep_norm(self, source: Any, names: tuple[str, ...]) -> str | None:
        """Take over a norm under its own name, which state dicts have, and return the name."""
        for name in names:
            norm = getattr(source, name, None)
            if norm is not None and type(norm) is not nn.Identity:
                setattr(self, name, norm)
                return name
        return None

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, None]:
        """Return x_BMD; or (x_BMD, None) in the place of an nn.MultiheadAttention.

        Args:
            query: x_BMD.
            key, value: rows [B, L, width]; None: those of `query`.
            k_x, v_x: other names of key and value.
            attn_mask: a float mask, added to the scores; or, in the place of an
                nn.MultiheadAttention, a bool mask, True for forbidden pairs; [M, L] or
                [B heads, M, L].
            need_weights: must be False.

        Raises:
            NotImplementedError: weights are requested, or the mask is a bool one whose meaning
                depends on open_clip's version.
        """
        key = k_x if key is None else key
        value = v_x if value is None else value
        key, value = query if key is None else key, query if value is None else value
        if need_weights:
            raise NotImplementedError("explicit attention returns no attention weights")
        if not self.returns_pair and attn_mask is not None and attn_mask.dtype == torch.bool:
            raise NotImplementedError("explicit attention takes a float mask in this block")
        is_causal = self.causal and attn_mask is not None
        projected = self.project(query, key, value)
        x_BMD = self.out_proj(self.attend(*projected, None if is_causal else attn_mask, is_causal))
        return (x_BMD, None) if self.returns_pair else x_BMD

    def attend(
        self,
        query_BMD: Tensor,
        key_BLD: Tensor,
        value_BLD: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return attention of M queries over L keys, heads concatenated, before `out_proj`."""
        q_BHMd, k_BHLd, v_BHLd = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (query_BMD, key_BLD, value_BLD)
        )
        x_BHMd = F.scaled_dot_product_attention(
            q_BHMd,
            k_BHLd,
            v_BHLd,
            attn_mask=_additive(attn_mask, q_BHMd),
            is_causal=is_causal,
        )
        x_BMD = x_BHMd.transpose(1, 2).flatten(2)
        # torch's attention kernels save their output.
        return mark_saved_anyway(x_BMD) if x_BMD.requires_grad else x_BMD

    def project(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [..., D], normalised, before the split into heads.

        Args:
            query: rows [..., D].
            key, value: other rows, or None for the same rows.
        """
        key, value = query if key is None else key, query if value is None else value
        if self.in_proj is None:
            rows = zip(PARTS, (query, key, value), strict=True)
            query, key, value = (getattr(self, part)(x) for part, x in rows)
            if self.in_proj_bias is not None:
                biases = zip((query, key, value), self.in_proj_bias.chunk(3), strict=True)
                query, key, value = (x + bias.to(x.dtype) for x, bias in biases)
        elif key is query and value is query:
            query, key, value = self.in_proj(query).chunk(3, dim=-1)
        else:  # a few products more than needed, so that the one layer is called
            stacked = map(self.in_proj, (query, key, value))
            query, key, value = (x.chunk(3, dim=-1)[part] for part, x in enumerate(stacked))
        return self._normed(self.query_norm, query), self._normed(self.key_norm, key), value

    def project_together(self, query: Tensor) -> Tensor:
        """Return `project(query)` as one tensor [..., 3, D].

        It is a view of the output of `in_proj`, if nothing comes after this layer. A caller that
        treats query, key and value alike needs fewer calls with it.
        """
        if self.in_proj is None or self.query_norm is not None or self.key_norm is not None:
            return torch.stack(self.project(query), dim=-2)
        return self.in_proj(query).unflatten(-1, (3, -1))

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        """Normalise the values of each head."""
        if name is None:
            return x
        normed: Tensor = getattr(self, name)(x.unflatten(-1, (self.heads, -1)))
        return normed.flatten(-2)

    def split(self) -> None:
        """Replace `in_proj` by `q_proj`, `k_proj` and `v_proj`, for adapters that treat each alone.

        The output is the same. Optimizers that exist already hold the old parameter. A second call
        does nothing.
        """
        if self.in_proj is None:
            return
        for part, layer in SplitProjection(self.in_proj).named_children():
            setattr(self, part, layer)
        self.in_proj = None


def explicit_attention(model: nn.Module) -> int:
    """Make all projections of a model's attention modules that are called.

    It replaces the attention of every residual block in both towers of an open_clip model, and that
    of CoCa's poolers. The pooling of open_clip's ResNets and timm's EVA with separate biases get
    another forward pass. Other attention of timm and Hugging Face calls its layers already and
    stays unchanged. A second call does nothing.

    Returns:
        The number of replaced modules.

    Raises:
        InputError: an attention has an option that is not computed here.
    """
    visual: Any = getattr(model, "visual", None)
    text = text_tower(model)
    count = _replace(visual, causal=False) + _replace(text, causal=_masks_only_the_future(text))
    for name in ("attn_pool", "attn_pool_contrastive"):
        pooler: Any = getattr(visual, name, None)
        if _has_hidden_projections(getattr(pooler, "attn", None)):
            pooler.attn = ExplicitAttention(pooler.attn)
            count += 1
    module: Any
    for module in model.modules():
        count += explicit_pooling_2d(module)
        if getattr(module, "q_bias", None) is not None and hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # otherwise timm reads qkv's weight without a call
    return count


def split_projections(block: nn.Module) -> None:
    """Make query, key and value of all attention inside a block separate linear layers.

    In timm's attention, a SplitProjection takes the place of `qkv`. Attention that has separate
    layers already stays unchanged.
    """
    module: Any
    for module in list(block.modules()):
        if isinstance(module, ExplicitAttention):
            module.split()
        elif is_fused(module):
            module.qkv = SplitProjection(module.qkv)


def is_fused(module: nn.Module) -> bool:
    """Return whether a module is an attention with one linear layer `qkv`, as timm's."""
    qkv, heads = getattr(module, "qkv", None), ("num_heads", "heads")
    has_heads = any(hasattr(module, name) for name in heads)
    return type(qkv) is nn.Linear and has_heads and qkv.out_features % 3 == 0


def saved_place(model: nn.Module, layer: str) -> tuple[str, tuple[int, int]]:
    """Return where the state dict of a model has the weight of a linear layer.

    Args:
        model: an open_clip model.
        layer: name of the layer in the model, such as `visual.transformer.resblocks.0.attn.q_proj`.

    Returns:
        The name of the tensor without its ending weight or bias, and the layer's rows in it.
    """
    parent_name, _, name = layer.rpartition(".")
    height = model.get_submodule(layer).out_features
    assert isinstance(height, int)
    parent = model.get_submodule(parent_name)
    first = height * PARTS.index(name) if name in PARTS else 0
    if isinstance(parent, SplitProjection):
        return f"{parent_name}.", (first, first + height)
    if isinstance(parent, ExplicitAttention) and name != "out_proj":
        if parent.one_matrix:
            return f"{parent_name}.in_proj_", (first, first + height)
        return f"{layer}_", (0, height)
    return f"{layer}.", (0, height)


def _replace(tower: Any, causal: bool) -> int:
    count = 0
    for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
        if _has_hidden_projections(getattr(block, "attn", None)):
            block.attn = ExplicitAttention(block.attn, causal)
            count += 1
    return count


def _has_hidden_projections(module: Any) -> bool:
    """Return whether this is an nn.MultiheadAttention or open_clip's Attention."""
    names = ("in_proj_weight", "out_proj", "num_heads")
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)


def _check_options(source: Any) -> None:
    """Raise InputError if an attention has an option that ExplicitAttention does not compute."""
    if isinstance(source, nn.MultiheadAttention):
        found = {
            "dropout": bool(source.dropout),
            "batch_first=False": not source.batch_first,
            "add_bias_kv": source.bias_k is not None,
            "add_zero_attn": source.add_zero_attn,
        }
    else:
        inner = (getattr(source, name, None) for name in ("ln_inner", "inner_norm", "norm"))
        drops = (getattr(source, name, None) for name in ("attn_drop", "out_drop", "proj_drop"))
        found = {
            name: getattr(source, name, False) is True
            or getattr(source, parameter, None) is not None
            for name, parameter in (("scaled_cosine", "logit_scale"), ("scale_heads", "head_scale"))
        }
        found |= {
            "inner_norm": any(norm and type(norm) is not nn.Identity for norm in inner),
            "dropout": any(getattr(drop, "p", 0) for drop in drops),
        }
    options = [name for name, is_used in found.items() if is_used]
    if options:
        raise InputError(
            f"the attention of this model has {', '.join(options)}; only attention as in CLIP, "
            "also with norms of query and key, can be trained here. Choose another architecture."
        )


def _masks_only_the_future(text: Any) -> bool:
    """Return whether the text tower's mask is always the causal one, the same for all prompts.

    The options that open_clip builds the tower from decide this, because fake tensors have no mask
    entries to read.
    """
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "use_pad_mask", False)
    return plain and getattr(text, "attn_mask", None) is not None


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Convert any mask of nn.MultiheadAttention to the additive mask of torch's kernel."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    if mask.ndim == 3:
        mask = mask.unflatten(0, (len(like), -1))
    return mask.to(like.dtype)  # under autocast, the mask has the residual stream's dtype


def _save_as_source(
    module: ExplicitAttention, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    values = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    first: dict[str, Tensor] = {}  # the source's own parameters, before those of its modules
    for kind in ("weight", "bias"):
        parts = [f"{prefix}{part}.{kind}" for part in PARTS]
        if kind == "weight" and not module.one_matrix:
            first |= {_flat(name): values.pop(name) for name in parts}
        elif all(name in values for name in parts):
            first[f"{prefix}in_proj_{kind}"] = torch.cat([values.pop(name) for name in parts])
        elif f"{prefix}in_proj.{kind}" in values:
            first[f"{prefix}in_proj_{kind}"] = values.pop(f"{prefix}in_proj.{kind}")
    state.update(first | values)


def _load_from_source(
    module: ExplicitAttention, state: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    if not module.one_matrix:
        for name in (f"{prefix}{part}.weight" for part in PARTS):
            if _flat(name) in state:
                state[name] = state.pop(_flat(name))
        return
    for kind in ("weight", "bias"):
        value = state.pop(f"{prefix}in_proj_{kind}", None)
        if value is not None and module.in_proj is not None:
            state[f"{prefix}in_proj.{kind}"] = value
        elif value is not None:
            for part, rows in zip(PARTS, value.chunk(3), strict=True):
                state[f"{prefix}{part}.{kind}"] = rows


def _flat(name: str) -> str:
    """Return the source's name of a separate matrix: a parameter of its own, not of a layer."""
    return name.removesuffix(".weight") + "_weight"
