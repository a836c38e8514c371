"""Attention whose projections are nn.Linear modules, so that they can be trained one by one.

`nn.MultiheadAttention` keeps its projections to itself: nothing can replace, wrap or hook them.
Here they are modules of their own, and everything else stays as open_clip has it: the call, the
numbers, and the names in state dicts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.kept import mark_kept
from so_clip.errors import InputError

_PARTS = ("q_proj", "k_proj", "v_proj")


class ExplicitAttention(nn.Module):
    """Multi-head self-attention in place of an nn.MultiheadAttention, by torch's fused kernel.

    Parameters are named `in_proj.weight`, `in_proj.bias` (query, key and value on top of each
    other, [3 D, D]), `out_proj.weight` and `out_proj.bias`; after `split`, `q_proj`, `k_proj` and
    `v_proj` in place of `in_proj`. State dicts use nn.MultiheadAttention's names and layout either
    way, in saving and in loading.

    Args:
        source: the attention to replace, without dropout, one width for query, key and value. Its
            parameters are taken over, not copied.
        causal: the mask given to `forward`, where one is given, is the causal one; its entries are
            not looked at.

    Raises:
        InputError: `source` does something beyond what CLIP's attention does.
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
                "too old; explicit attention replaces CLIP's kind only."
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
        """Return (x_BLD, None), as nn.MultiheadAttention does for need_weights=False.

        Args:
            query, key, value: the same tensor x_BLD.
            attn_mask: added to the scores, or bool with True where attention is forbidden; [L, L]
                or [B heads, L, L].
            need_weights: must be False.
        """
        if key is not query or value is not query or need_weights:
            raise NotImplementedError("explicit attention is self-attention without its weights")
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
        """Return what M queries find among L keys, heads side by side, before `out_proj`."""
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
        return mark_kept(x_BMD) if x_BMD.requires_grad else x_BMD  # by torch's kernels

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each shaped like x [..., D], before they part into heads."""
        if self.in_proj is not None:
            query, key, value = self.in_proj(x).chunk(3, dim=-1)
        else:
            query, key, value = (getattr(self, name)(x) for name in _PARTS)
        return query, key, value

    def split(self) -> None:
        """Replace `in_proj` by `q_proj`, `k_proj` and `v_proj`, for adapters that tell them apart.

        The same numbers come out; optimizers made before hold the old parameter. Does nothing
        where it was done before.
        """
        if self.in_proj is None:
            return
        weight, bias = self.in_proj.weight, self.in_proj.bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        for name, part, part_bias in zip(_PARTS, weight.chunk(3), biases, strict=True):
            setattr(self, name, _linear(_own(part, weight), _own(part_bias, weight)))
        self.in_proj = None


def explicit_attention(model: nn.Module) -> int:
    """Replace the attention of every residual block in both towers of an open_clip model.

    Towers that are not made of open_clip's residual blocks (ResNets, timm, Hugging Face) are left
    as they are, as is attention that only pools. Doing it twice does no harm.

    Returns:
        How many were replaced.
    """
    visual, text = getattr(model, "visual", None), getattr(model, "text", model)
    return _replace(visual, causal=False) + _replace(text, causal=_masks_only_the_future(text))


def _replace(tower: Any, causal: bool) -> int:
    count = 0
    for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
        if isinstance(block.attn, nn.MultiheadAttention):
            block.attn = ExplicitAttention(block.attn, causal)
            count += 1
    return count


def _masks_only_the_future(text: Any) -> bool:
    """Whether the text tower's mask is always the causal one, with nothing added per prompt.

    Judged by how open_clip builds it, not by its entries, which fake tensors do not have.
    """
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "use_pad_mask", False)
    return plain and getattr(text, "attn_mask", None) is not None


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """Make a Linear of existing parameters, without drawing random numbers for new ones."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def _own(part: Tensor | None, whole: Tensor) -> nn.Parameter | None:
    if part is None:
        return None
    return nn.Parameter(part.detach().clone(), requires_grad=whole.requires_grad)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Bring nn.MultiheadAttention's kinds of masks to the one that torch's kernel takes."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    if mask.ndim == 3:
        mask = mask.unflatten(0, (len(like), -1))
    return mask.to(like.dtype)  # under autocast, the mask comes in the residual stream's precision


def _save_as_multihead(
    module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    values = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    for kind in ("bias", "weight"):  # the last one comes first
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
