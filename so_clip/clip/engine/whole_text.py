"""Whole prompts through a model's own text tower, in as few chunks as the budget allows.

Not every text tower can share prefixes between prompts. SigLIP's and CLIPA's attend to the padding,
so each position depends on the whole prompt; those of Hugging Face attend in both directions. They
run on whole prompts here.

Tensor names end in their shape: U different prompts, C prompts of a chunk, L tokens, D embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.random_recompute import draws_random, run_twice
from so_clip.clip.engine.tower_blocks import blocks_in
from so_clip.clip.towers import text_blocks, text_tower

MIB = 2**20
# A layer keeps its input, and the next operation keeps its output. Norms, residuals and activations
# add a quarter.
_KEPT_PER_LAYER = 1.25
# Larger chunks without a graph are no faster: 4000 tokens of a base model fill every device.
_TEMPORARY_MIB = 128
# A block has its residual, and a layer's inputs and outputs before and after the activation.
_TEMPORARIES = 2


class WholePrompts(nn.Module):
    """Different whole prompts, encoded by the model's own `encode_text`.

    A tower of Hugging Face masks the padding: its prompts are sorted by length, and a chunk is cut
    to its longest prompt. Other towers read all positions.

    The budget limits a chunk's temporary tensors and what it keeps for the backward pass. The kept
    part depends on the weights that are trained. If there are several chunks, the backward pass
    computes the activations of all but the last again.

    Args:
        model: an open_clip model. Only its structure is read; no reference is kept.
        tokens_UL: token ids as the tokenizer returns them.
        budget_mib: MiB of a chunk.
    """

    tokens_UL: Tensor

    def __init__(self, model: Any, tokens_UL: Tensor, budget_mib: float) -> None:
        super().__init__()
        lengths = _lengths(model, tokens_UL)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.order = order
        self.budget_mib = budget_mib
        self._lengths = [lengths[u] for u in order]
        self.register_buffer("tokens_UL", tokens_UL[order], persistent=False)

    def forward(self, model: Any, memory: Memory = "fast") -> Tensor:
        """Return text_UD like `encode_text`, in the order of `order`.

        Args:
            model: the model that these prompts were made for.
            memory: fast | balanced | small, for the last chunk.
        """
        *others, last = (
            self.tokens_UL[start:stop, :length] for start, stop, length in self.chunks(model)
        )
        if not (torch.is_grad_enabled() and kept_bytes(model)):
            text = [_encode(model, "fast", tokens_CL) for tokens_CL in others]
        else:
            # "fast" inside a checkpoint: other modes would keep inputs for a second recomputation.
            random = draws_random(text_blocks(model)) if others else False
            text = [
                run_twice(_encode, model, "fast", tokens_CL, random=random) for tokens_CL in others
            ]
        return torch.cat([*text, _encode(model, memory, last)])

    def chunks(self, model: Any) -> list[tuple[int, int, int]]:
        """Return (first prompt, prompt after the last, tokens of each) of the current chunks.

        Only the first chunk may have room for another prompt.
        """
        kept = kept_bytes(model) if torch.is_grad_enabled() else 0.0
        budget_mib = self.budget_mib if kept else min(self.budget_mib, _TEMPORARY_MIB)
        most_tokens = budget_mib * MIB / max(kept, _temporary_bytes(model))
        chunks = []
        stop = len(self._lengths)
        while stop:
            length = self._lengths[stop - 1]
            start = max(0, stop - max(1, int(most_tokens / length)))
            chunks.append((start, stop, length))
            stop = start
        return chunks[::-1]


def _encode(model: Any, memory: Memory, tokens_CL: Tensor) -> Tensor:
    with blocks_in(text_blocks(model), memory):
        text_CD: Tensor = model.encode_text(tokens_CL)
    return text_CD


def kept_bytes(model: Any) -> float:
    """Estimate the bytes that a token's backward pass keeps in float32; 0 if nothing is trained.

    Modules before the first trained tensor keep nothing. A frozen layer keeps its output for the
    next operation, and a trained layer also its input.
    """
    modules = _modules(model)
    # A block's modules are not in the order of their execution in all towers.
    blocks = {block for module in modules if isinstance(module, nn.ModuleList) for block in module}
    in_graph = any(isinstance(module, nn.Embedding) and _trains(module) for module in modules)
    values = 0
    for module in modules:
        own = any(value.requires_grad for value in module.parameters(recurse=False))
        in_graph = in_graph or own or (module in blocks and _trains(module))
        if in_graph and (layer := _layer(module)):
            inputs, outputs = layer
            values += outputs + inputs * _trains(module)
    # A trained tensor behind all layers, such as the projection, keeps a few rows.
    return 4 * _kept_per_layer(modules) * max(values, int(in_graph))


def all_kept_bytes(model: Any) -> float:
    """Return the estimate of `kept_bytes` for a tower whose weights are all trained."""
    modules = _modules(model)
    return 4 * _kept_per_layer(modules) * sum(map(sum, filter(None, map(_layer, modules))))


def _kept_per_layer(modules: list[nn.Module]) -> float:
    # T5 computes its norm and its activation in many small operations that keep tensors.
    written_out = not any(isinstance(module, nn.LayerNorm) for module in modules)
    return _KEPT_PER_LAYER * (2 if written_out else 1)


def _temporary_bytes(model: Any) -> float:
    return 4.0 * _TEMPORARIES * max(map(sum, filter(None, map(_layer, _modules(model)))))


def _modules(model: Any) -> list[nn.Module]:
    """Return the modules of the text tower, nearly in the order of their execution."""
    named = text_tower(model).named_modules()
    return [module for name, module in named if name.partition(".")[0] != "visual"]


def _trains(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters())


def _layer(module: nn.Module) -> tuple[int, int] | None:
    """Return inputs and outputs of a linear layer, or of an attention's first projection."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "in_proj_weight", None)  # of nn.MultiheadAttention
    return None if weight is None else (weight.shape[1], weight.shape[0])


def _lengths(model: Any, tokens_UL: Tensor) -> list[int]:
    """Return the number of tokens that each prompt's output depends on."""
    from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler

    text = text_tower(model)
    pooled = (ClsLastHiddenStatePooler, ClsPooler, MeanPooler)
    if not isinstance(text, HFTextEncoder) or not isinstance(text.pooler, pooled):
        return [tokens_UL.shape[1]] * len(tokens_UL)
    places_L = torch.arange(1, tokens_UL.shape[1] + 1, device=tokens_UL.device)
    lengths_U = (places_L * (tokens_UL != text.config.pad_token_id)).amax(dim=1)
    lengths: list[int] = lengths_U.clamp(min=1).tolist()
    return lengths
