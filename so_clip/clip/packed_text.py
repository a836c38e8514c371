"""Class prompts through the text tower for what they must cost, with the same result.

CLIP's text tower is causal and read at the end token. So what it computes at a position depends on
the tokens up to there alone, and prompts that begin alike share it: "a photo of a" is worth one
pass, not one a class. Nothing after the end token is ever read. Here the prompts form a tree of
tokens, and the tower runs on one row per distinct prefix: 4,008 rows for ImageNet's 1000 prompts in
place of 77,000. Only attention looks at prompts again, and only for as long as they are.

Tensor names end in their shape: K classes, L tokens, N rows, D width or embedding, P places (the
positions of all prompts, padded to the longest of similar length), M some of the rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.blocks import Memory, after_attention, before_attention, run_block

MIB = 2**20
# What a mode that keeps little elsewhere should not spend on prompts.
TEXT_BUDGETS_MIB: dict[Memory, float] = {"fast": 1024, "balanced": 128, "small": 64}
# A GPU waits for the host to launch each chunk's kernels: with 128 MiB, ImageNet's steps took six
# times as long with balanced as with fast (results/tables/engine_steps_cuda.csv). In bf16 few large
# chunks need no more memory than many small ones, says so_clip.forecast.
CUDA_TEXT_BUDGETS_MIB: dict[Memory, float] = {**TEXT_BUDGETS_MIB, "balanced": 1024}


def default_text_budget_mib(memory: Memory, on_cuda: bool) -> float:
    """Return the MiB that text_budget_mib=auto stands for."""
    return (CUDA_TEXT_BUDGETS_MIB if on_cuda else TEXT_BUDGETS_MIB)[memory]


_MOST_PADDING = 2  # positions; prompts that differ by more in length attend apart
# A linear layer keeps its input, and what follows it keeps its output; norms, residuals and
# QuickGELU add a quarter to that.
_KEPT_PER_LINEAR = 1.25

Prompt = Sequence[int]  # token ids up to and including the end token


class ClassPrompts(nn.Module):
    """The prompts of all classes, packed once, ready to be encoded again at every step.

    Prefixes are shared where that is exact: in open_clip's own causal text transformers with
    explicit attention, read at the end token. Other models (nn.MultiheadAttention, no causal mask
    as in SigLIP, a class token as in CoCa, Hugging Face encoders) run their own `encode_text`.

    Where the prompts' activations would exceed the budget, they are encoded in chunks whose
    activations are computed anew in the backward pass. The last chunk keeps its own: the backward
    pass begins with it.

    Args:
        model: an open_clip model; it is asked what it is, and not kept.
        tokens_KL: one tokenised prompt per class, or each one's tokens up to its end, for a model
            where prefixes can be shared.
        budget_mib: MiB that the activations kept for the backward pass may take, were all text
            weights trained in float32; fewer are taken otherwise. At least one class at a time.
        share_prefixes: False runs `encode_text` on whole prompts whatever the model is.
        apart: each prompt has rows of its own, still without those after its end: for a tower that
            draws random numbers, which prompts are not to have in common.
    """

    place_K: Tensor  # of each class among the chunks' outputs

    def __init__(
        self,
        model: Any,
        tokens_KL: Tensor | Sequence[Prompt],
        budget_mib: float = TEXT_BUDGETS_MIB["balanced"],
        share_prefixes: bool = True,
        apart: bool = False,
    ) -> None:
        super().__init__()
        prompts: Sequence[Prompt] | None
        if not isinstance(tokens_KL, Tensor):
            prompts = tokens_KL
        else:
            prompts = prompts_to_end(model, tokens_KL) if share_prefixes else None
        most_rows = int(budget_mib * MIB / _bytes_per_row(model))
        if prompts is None:
            assert isinstance(tokens_KL, Tensor)
            size = max(1, most_rows // tokens_KL.shape[1])
            self.chunks = nn.ModuleList(map(_PlainPrompts, tokens_KL.split(size)))
            order = list(range(len(tokens_KL)))
        else:
            chunks = split_by_rows(prompts, most_rows, apart)
            self.chunks = nn.ModuleList(
                PackedPrompts([prompts[k] for k in chunk], apart) for chunk in chunks
            )
            order = [k for chunk in chunks for k in chunk]
        self.register_buffer("place_K", torch.tensor(order).argsort(), persistent=False)

    def forward(self, model: Any, memory: Memory = "fast") -> Tensor:
        """Return class_KD as the model's `encode_text` would, not of unit length.

        Args:
            model: the one it was made for.
            memory: what is kept of the last chunk for the backward pass; see `so_clip.clip.blocks`.
        """
        *recomputed, last = self.chunks
        # Nothing in them is to be recomputed by itself: what that needs would be kept meanwhile.
        # place_K tells the checkpoint on which device random numbers are drawn.
        class_KD = [
            checkpoint(chunk, model, "fast", self.place_K, use_reentrant=False)
            for chunk in recomputed
        ]
        return torch.cat([*class_KD, last(model, memory)]).index_select(0, self.place_K)


class PackedPrompts(nn.Module):
    """Some prompts as rows, one per distinct prefix, and the way between rows and prompts.

    Args:
        prompts: ideally in the order of their lengths.
        apart: one row per prefix of each prompt instead, distinct or not.
    """

    tokens_N: Tensor  # the last token of each prefix
    positions_N: Tensor
    row_of_P: Tensor  # padded with a prompt's last row, which causal masking keeps to itself
    place_of_N: Tensor  # one of each row's places
    end_row_K: Tensor
    end_place_K: Tensor

    def __init__(self, prompts: Sequence[Prompt], apart: bool = False) -> None:
        super().__init__()
        rows: dict[tuple[int, int], int] = {}  # (row of the prefix before, token) -> row
        paths = []
        for number, prompt in enumerate(prompts):
            path = [-1 - number if apart else -1]
            for token in prompt:
                path.append(rows.setdefault((path[-1], token), len(rows)))
            paths.append(path[1:])

        self.shapes: list[tuple[int, int]] = []  # (prompts, longest) of each group
        position_of = [0] * len(rows)
        place_of = [0] * len(rows)
        row_of: list[int] = []
        for group in _similar_lengths(paths):
            longest = max(map(len, group))
            self.shapes.append((len(group), longest))
            for path in group:
                for position, row in enumerate(path):
                    position_of[row] = position
                    place_of[row] = len(row_of) + position
                row_of += path + path[-1:] * (longest - len(path))

        def index(name: str, values: list[int]) -> None:
            self.register_buffer(name, torch.tensor(values), persistent=False)

        index("tokens_N", [token for _, token in rows])
        index("positions_N", position_of)
        index("row_of_P", row_of)
        index("place_of_N", place_of)
        index("end_row_K", [path[-1] for path in paths])
        index("end_place_K", [place_of[path[-1]] for path in paths])

    def forward(self, model: Any, memory: Memory = "fast", near: Tensor | None = None) -> Tensor:
        """Return text_KD, as the model's `encode_text` would; `near` is for checkpoints only."""
        text = _text_tower(model)
        dtype = text.transformer.get_cast_dtype()
        x_ND = F.embedding(self.positions_N, text.positional_embedding).to(dtype)
        x_ND = x_ND + text.token_embedding(self.tokens_N).to(dtype)
        *blocks, last = text.transformer.resblocks
        for block in blocks:
            x_ND = run_block(block, memory, self._rows, x_ND, x_ND, self.place_of_N)
        # What the last block does to other rows than the prompts' ends, nothing reads.
        x_KD = x_ND.index_select(0, self.end_row_K)
        x_KD = run_block(last, memory, self._rows, x_ND, x_KD, self.end_place_K)
        x_KD = text.ln_final(x_KD)
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(x_KD)
        return x_KD if text.text_projection is None else x_KD @ text.text_projection

    def _rows(
        self, block: Any, memory: Memory, x_ND: Tensor, x_MD: Tensor, place_of_M: Tensor
    ) -> Tensor:
        """Return some rows after a residual block, of `x_ND` before it, of which they are x_MD."""
        query_ND, key_ND, value_ND = before_attention(block, memory, x_ND)
        # Padded and repeated, its inputs are the largest thing here and the cheapest to redo.
        mixed_MD = checkpoint(
            self._attend,
            query_ND,
            key_ND,
            value_ND,
            place_of_M,
            block.attn.heads,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return after_attention(block, memory, x_MD, mixed_MD)

    def _attend(
        self, query_ND: Tensor, key_ND: Tensor, value_ND: Tensor, place_of_M: Tensor, heads: int
    ) -> Tensor:
        sizes = [count * length for count, length in self.shapes]
        parts = zip(
            self.shapes,
            *(self._at_places(x_ND).split(sizes) for x_ND in (query_ND, key_ND, value_ND)),
            strict=True,
        )
        mixed = []
        for shape, *qkv in parts:
            q_KHLd, k_KHLd, v_KHLd = (
                x_PD.unflatten(0, shape).unflatten(-1, (heads, -1)).transpose(1, 2) for x_PD in qkv
            )
            x_KHLd = F.scaled_dot_product_attention(q_KHLd, k_KHLd, v_KHLd, is_causal=True)
            mixed.append(x_KHLd.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(mixed).index_select(0, place_of_M)

    def _at_places(self, x_ND: Tensor) -> Tensor:
        # A row shared by 1000 prompts sums 1000 gradients: in half precision most would be lost.
        # Unlike index_select's, F.embedding's sums are the same in every run on CUDA.
        exact_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        return F.embedding(self.row_of_P, exact_ND).to(x_ND.dtype)


class _PlainPrompts(nn.Module):
    """Whole prompts through the model's own `encode_text`."""

    tokens_KL: Tensor

    def __init__(self, tokens_KL: Tensor) -> None:
        super().__init__()
        self.register_buffer("tokens_KL", tokens_KL, persistent=False)

    def forward(self, model: Any, memory: Memory = "fast", near: Tensor | None = None) -> Tensor:
        return model.encode_text(self.tokens_KL)


def prompts_to_end(model: Any, tokens_KL: Tensor) -> list[list[int]] | None:
    """Return each prompt's tokens up to the end token, or None where the model reads more."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    text = _text_tower(model)
    if type(model) is not CLIP and not (
        type(model) is CustomTextCLIP
        and type(text) is TextTransformer
        and text.cls_emb is None
        and not text.output_tokens
    ):
        return None
    blocks = text.transformer.resblocks
    if text.attn_mask is None or not all(
        type(block) is ResidualAttentionBlock and isinstance(block.attn, ExplicitAttention)
        for block in blocks
    ):
        return None
    pool = text.text_pool_type if type(model) is CLIP else text.pool_type
    if pool == "argmax":
        end_K = tokens_KL.argmax(dim=1)
    elif pool == "eos":
        end_id = text.text_eos_id if type(model) is CLIP else text.eos_id
        end_K = (tokens_KL == end_id).int().argmax(dim=1)
    else:
        return None
    ends = end_K.tolist()
    return [tokens[: end + 1] for tokens, end in zip(tokens_KL.tolist(), ends, strict=True)]


def split_by_rows(
    prompts: Sequence[Prompt], most_rows: int, apart: bool = False
) -> list[list[int]]:
    """Return prompts' indices in chunks of at most `most_rows` rows, or of one prompt.

    Rows are distinct prefixes, or, with `apart`, distinct prefixes of each prompt. Prompts of one
    length, and among them those that begin alike, stay together. All chunks but the first are as
    full as can be.
    """
    order = sorted(range(len(prompts)), key=lambda k: (len(prompts[k]), *prompts[k]))
    chunks: list[list[int]] = []
    prefixes: set[tuple[int, ...]] = set()
    for k in reversed(order):
        prompt = tuple(prompts[k])
        owner = k if apart else -1
        own = {(owner, *prompt[:length]) for length in range(1, len(prompt) + 1)}
        if not chunks or len(prefixes | own) > most_rows:
            chunks.append([])
            prefixes = set()
        prefixes |= own
        chunks[-1].append(k)
    return [chunk[::-1] for chunk in reversed(chunks)]


def _similar_lengths(paths: list[list[int]]) -> list[list[list[int]]]:
    groups: list[list[list[int]]] = []
    for path in paths:
        if groups and abs(len(path) - len(groups[-1][0])) <= _MOST_PADDING:
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def _text_tower(model: Any) -> Any:
    return getattr(model, "text", model)


def _bytes_per_row(model: nn.Module) -> float:
    """Estimate what the text tower keeps for the backward pass of a row, at most, in float32."""
    values = sum(
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("visual.")
    )
    return 4 * _KEPT_PER_LINEAR * values
