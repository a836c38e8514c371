"""Attention with nn.Linear modules as projections, so that they can be trained one by one.

`nn.MultiheadAttention` hides its projections: no code can replace, wrap or hook them. Here they are
modules. The call, the numbers and the names in state dicts stay those of open_clip.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.recompute import mark_saved_anyway
from so_clip.errors import InputError

_PARTS = ("q_proj", "k_proj", "v_proj")


class ExplicitAttention(nn.Module):
    """Multi-head self-attention with torch's fused kernel, to replace an nn.MultiheadAttention.

    Its parameters are `in_proj.weight` [3 D, D] and `in_proj.bias` [3 D] (query, key and value,
    stacked), `out_proj.weight` and `out_proj.bias`. After `split`, `q_proj`, `k_proj` and `v_proj`
    replace `in_proj`. State dicts have nn.MultiheadAttention's names and layout in both cases, for
    saving and loading.

    Args:
        source: the attention to replace, without dropout, with one width for query, key and value.
            Its parameters are reused, not copied.
        causal: any mask given to `forward` is the causal one; its entries are not read.

    Raises:
        InputError: `source` has options that CLIP's attention does not use.
    """

    def __init__(self, source: nn.MultiheadAttention, causal: bool = False) -> None:
        super().__init__()
        if (
            source.dropout
            or not source.batch_first
            or source.in_proj_weight is None
            or source.bias_k is not None
            or source.add_zero_attn
        ):
            raise InputError(
                "this model's attention has dropout, key biases or several widths, or open_clip is "
                "too old; explicit attention replaces only attention as in CLIP."
            )
        self.heads = source.num_heads
        self.causal = causal
        self.in_proj: nn.Linear | None = _linear(source.in_proj_weight, source.in_proj_bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)
        self.register_state_dict_post_hook(_save_as_multihead)
        self.register_load_state_dict_pre_hook(_load_from_multihead)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """Return (x_BLD, None), like nn.MultiheadAttention with need_weights=False.

        Args:
            query, key, value: the same tensor x_BLD.
            attn_mask: a float mask, added to the scores, or a bool mask, True for forbidden pairs;
                [L, L] or [B heads, L, L].
            need_weights: must be False.

        Raises:
            NotImplementedError: the inputs differ, or weights are requested.
        """
        if key is not query or value is not query or need_weights:
            raise NotImplementedError(
                "explicit attention computes self-attention only and returns no attention weights"
            )
        is_causal = self.causal and attn_mask is not None
        x_BLD = self.attend(*self.project(query), None if is_causal else attn_mask, is_causal)
        return self.out_proj(x_BLD), None

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

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each shaped like x [..., D], before the split into heads."""
        if self.in_proj is not None:
            query, key, value = self.in_proj(x).chunk(3, dim=-1)
        else:
            query, key, value = (getattr(self, name)(x) for name in _PARTS)
        return query, key, value

    def split(self) -> None:
        """Replace `in_proj` by `q_proj`, `k_proj` and `v_proj`, for adapters that treat them apart.

        The output is the same. Optimizers that exist already hold the old parameter. A second call
        does nothing.
        """
        if self.in_proj is None:
            return
        weight, bias = self.in_proj.weight, self.in_proj.bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        for name, part, part_bias in zip(_PARTS, weight.chunk(3), biases, strict=True):
            setattr(self, name, _linear(_copied(part, weight), _copied(part_bias, weight)))
        self.in_proj = None


def explicit_attention(model: nn.Module) -> int:
    """Replace the attention of every residual block in both towers of an open_clip model.

    Towers without open_clip's residual blocks (ResNets, timm, Hugging Face) and attention for
    pooling stay unchanged. A second call does nothing.

    Returns:
        The number of replaced modules.
    """
    visual, text = getattr(model, "visual", None), getattr(model, "text", model)
    return _replace(visual, causal=False) + _replace(text, causal=_masks_only_the_future(text))


def saved_place(model: nn.Module, layer: str) -> tuple[str, tuple[int, int]]:
    """Return where the state dict of a model has the weight of a linear layer.

    Args:
        model: an open_clip model.
        layer: name of the layer in the model, such as `visual.transformer.resblocks.0.attn.q_proj`.

    Returns:
        The name of the tensor without its ending weight or bias, and the layer's rows in it.
    """
    parent, _, name = layer.rpartition(".")
    height = model.get_submodule(layer).out_features
    assert isinstance(height, int)
    if isinstance(model.get_submodule(parent), ExplicitAttention) and name != "out_proj":
        first = height * _PARTS.index(name) if name in _PARTS else 0
        return f"{parent}.in_proj_", (first, first + height)
    return f"{layer}.", (0, height)


def _replace(tower: Any, causal: bool) -> int:
    count = 0
    for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
        if isinstance(block.attn, nn.MultiheadAttention):
            block.attn = ExplicitAttention(block.attn, causal)
            count += 1
    return count


def _masks_only_the_future(text: Any) -> bool:
    """Return whether the text tower's mask is always the causal one, the same for all prompts.

    The options that open_clip builds the tower from decide this, because fake tensors have no mask
    entries to read.
    """
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "use_pad_mask", False)
    return plain and getattr(text, "attn_mask", None) is not None


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """Build a Linear from existing parameters, without random numbers for new ones."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def _copied(part: Tensor | None, whole: Tensor) -> nn.Parameter | None:
    if part is None:
        return None
    return nn.Parameter(part.detach().clone(), requires_grad=whole.requires_grad)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Convert any mask of nn.MultiheadAttention to the additive mask of torch's kernel."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    if mask.ndim == 3:
        mask = mask.unflatten(0, (len(like), -1))
    return mask.to(like.dtype)  # under autocast, the mask has the residual stream's dtype


def _save_as_multihead(
    module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    values = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    for kind in ("bias", "weight"):  # prepending bias, then weight, puts the weight first
        parts = [f"{prefix}{part}.{kind}" for part in _PARTS]
        if all(name in values for name in parts):
            joined = torch.cat([values.pop(name) for name in parts])
            values = {f"{prefix}in_proj.{kind}": joined} | values
    fused = {f"{prefix}in_proj.{kind}": f"{prefix}in_proj_{kind}" for kind in ("weight", "bias")}
    state.update({fused.get(name, name): value for name, value in values.items()})


def _load_from_multihead(
    module: ExplicitAttention, state: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    for kind in ("weight", "bias"):
        value = state.pop(f"{prefix}in_proj_{kind}", None)
        if value is None:
            continue
        if module.in_proj is not None:
            state[f"{prefix}in_proj.{kind}"] = value
        else:
            for part, slice_ in zip(_PARTS, value.chunk(3), strict=True):
                state[f"{prefix}{part}.{kind}"] = slice_
