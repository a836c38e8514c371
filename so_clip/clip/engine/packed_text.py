"""Packed prompts: the text tower computes each distinct prefix of all prompts only once.

CLIP's text tower is causal, and its output is read at the end token. So the activations at a
position depend only on the tokens up to this position: prompts that begin alike can share them, and
"a photo of a" needs one pass, not one for each class. No output depends on tokens after the end
token. Packed prompts form a tree of tokens, and the tower runs on one row per distinct prefix:
4,008 rows for ImageNet's 1000 prompts in place of 77,000. Only attention works on whole prompts,
padded to similar lengths. The result is the same.

Tensor names end in their shape: K classes, L tokens, N rows, D width or embedding, P places (the
positions of all prompts, padded to the longest of similar length), M some of the rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from so_clip.clip.engine.attention import ExplicitAttention
from so_clip.clip.engine.blocks import Memory, after_attention, before_attention, run_block
from so_clip.clip.engine.random_recompute import draws_random, run_twice
from so_clip.clip.engine.whole_text import MIB, WholePrompts, all_kept_bytes
from so_clip.clip.towers import has_text, text_tower

# A mode that keeps few activations elsewhere also gets a small budget for prompts.
TEXT_BUDGETS_MIB: dict[Memory, float] = {"fast": 1024, "balanced": 128, "small": 64}
# A GPU waits for the host to launch each chunk's kernels: with 128 MiB, ImageNet's steps took six
# times as long with balanced as with fast (results/tables/engine_steps_cuda.csv). In bf16, a few
# large chunks need no more memory than many small ones, according to so_clip.forecast.
CUDA_TEXT_BUDGETS_MIB: dict[Memory, float] = {**TEXT_BUDGETS_MIB, "balanced": 1024}


def default_text_budget_mib(memory: Memory, on_cuda: bool) -> float:
    """Return the budget of text_budget_mib=auto, in MiB."""
    return (CUDA_TEXT_BUDGETS_MIB if on_cuda else TEXT_BUDGETS_MIB)[memory]


_MOST_PADDING = 2  # positions; prompts whose lengths differ by more are not padded together

Prompt = Sequence[int]  # token ids up to and including the end token


class ClassPrompts(nn.Module):
    """The prompts of all classes, packed once and encoded again at every step.

    Prompts share prefixes if this is exact: in open_clip's causal text transformers with explicit
    attention, pooled at the end token. Other models (nn.MultiheadAttention, no causal mask as in
    SigLIP, a class token as in CoCa, Hugging Face encoders) run their own `encode_text`; see
    `so_clip.clip.engine.whole_text`. Equal prompts are encoded once.

    If the activations of all prompts exceed the budget, prompts are encoded in chunks, and the
    backward pass computes a chunk's activations again. The last chunk keeps its activations,
    because the backward pass begins with it.

    Args:
        model: an open_clip model. Only its structure is read; no reference is kept. The prompts of
            a model without a text tower cannot be encoded.
        tokens_KL: token ids, one prompt per class; or, if the model can share prefixes, the token
            ids of each prompt up to its end token.
        budget_mib: MiB of activations kept for the backward pass if all text weights are trained in
            float32; otherwise fewer are kept. A chunk has at least one class.
        share_prefixes: False runs `encode_text` on whole prompts for any model.
        separate: prompts share no rows; rows after the end token are still left out. Use it for a
            tower that draws random numbers, because they must differ between prompts.

    Example:
        >>> prompts = ClassPrompts(model, tokens_KL)
        >>> class_KD = prompts(model)  # equals model.encode_text(tokens_KL) up to rounding
    """

    place_K: Tensor  # each class's place in the chunks' outputs

    def __init__(
        self,
        model: Any,
        tokens_KL: Tensor | Sequence[Prompt],
        budget_mib: float = TEXT_BUDGETS_MIB["balanced"],
        share_prefixes: bool = True,
        separate: bool = False,
    ) -> None:
        super().__init__()
        if not has_text(model):  # nothing embeds them; the head knows the classes
            self.chunks = nn.ModuleList()
            self.register_buffer("place_K", torch.arange(len(tokens_KL)), persistent=False)
            return
        prompts: Sequence[Prompt] | None
        if not isinstance(tokens_KL, Tensor):
            prompts = tokens_KL
        else:
            prompts = prompts_to_end(model, tokens_KL) if share_prefixes else None
        if prompts is None:
            assert isinstance(tokens_KL, Tensor)
            first, number_K = _different(tokens_KL.tolist(), separate)
            whole = WholePrompts(model, tokens_KL[first], budget_mib)
            self.chunks = nn.ModuleList([whole])
            order = whole.order
        else:
            first, number_K = _different(prompts, separate)
            prompts = [prompts[k] for k in first]
            most_rows = int(budget_mib * MIB / all_kept_bytes(model))
            chunks = split_by_rows(prompts, most_rows, separate)
            self.chunks = nn.ModuleList(
                PackedPrompts([prompts[u] for u in chunk], separate) for chunk in chunks
            )
            order = [u for chunk in chunks for u in chunk]
        place_U = torch.tensor(order).argsort()
        self.register_buffer("place_K", place_U[torch.tensor(number_K)], persistent=False)

    def forward(self, model: Any, memory: Memory = "fast") -> Tensor:
        """Return class_KD like the model's own `encode_text`, not of unit length.

        Args:
            model: the model that these prompts were packed for.
            memory: fast | balanced | small, for the last chunk; see `so_clip.clip.engine.blocks`.
        """
        *recomputed, last = self.chunks
        if isinstance(last, WholePrompts):
            return _rows_at(last(model, memory), self.place_K)
        # "fast" inside a checkpoint: other modes would keep inputs for a second recomputation.
        # place_K shows the checkpoint the device of random numbers.
        random = draws_random(text_tower(model).transformer) if recomputed else False
        text = [
            run_twice(chunk, model, "fast", self.place_K, random=random) for chunk in recomputed
        ]
        return _rows_at(torch.cat([*text, last(model, memory)]), self.place_K)


class PackedPrompts(nn.Module):
    """Prompts as rows, one per distinct prefix, and the maps between rows and prompts.

    Args:
        prompts: token ids of each prompt; sorted by length they need the least padding.
        separate: one row per prefix of each prompt instead, distinct or not.
    """

    tokens_N: Tensor  # the last token of each prefix
    positions_N: Tensor
    # Rows of query, key and value at each place, as rows of the three of row 0, of row 1 and so on.
    # Padded with a prompt's last row; causal masking hides the padding.
    row_of_3P: Tensor
    place_of_N: Tensor  # one of each row's places
    end_row_K: Tensor  # the row and the place of each end token
    end_place_K: Tensor

    def __init__(self, prompts: Sequence[Prompt], separate: bool = False) -> None:
        super().__init__()
        rows: dict[tuple[int, int], int] = {}  # (row of the prefix before, token) -> row
        paths = []
        for number, prompt in enumerate(prompts):
            path = [-1 - number if separate else -1]
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
        index("row_of_3P", [3 * row + part for part in range(3) for row in row_of])
        index("place_of_N", place_of)
        index("end_row_K", [path[-1] for path in paths])
        index("end_place_K", [place_of[path[-1]] for path in paths])

    def forward(self, model: Any, memory: Memory = "fast", near: Tensor | None = None) -> Tensor:
        """Return text_KD like `encode_text` of the model; `near` shows checkpoints the device."""
        text = text_tower(model)
        dtype = text.transformer.get_cast_dtype()
        x_ND = F.embedding(self.positions_N, text.positional_embedding).to(dtype)
        x_ND = x_ND + text.token_embedding(self.tokens_N).to(dtype)
        *blocks, last = text.transformer.resblocks
        for block in blocks:
            x_ND = run_block(block, memory, self._rows, x_ND, x_ND, self.place_of_N)
        # No output depends on the last block's other rows than the end tokens.
        x_KD = x_ND.index_select(0, self.end_row_K)
        x_KD = run_block(last, memory, self._rows, x_ND, x_KD, self.end_place_K)
        x_KD = text.ln_final(x_KD)
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(x_KD)
        return x_KD if text.text_projection is None else x_KD @ text.text_projection

    def _rows(
        self, block: Any, memory: Memory, x_ND: Tensor, x_MD: Tensor, place_of_M: Tensor
    ) -> Tensor:
        """Return M rows after a residual block, for its input x_ND; x_MD are these rows of x_ND."""
        qkv_N3D = before_attention(block, memory, x_ND, block.attn.project_together)
        # Padded and repeated, attention's inputs are the largest tensors and cheap to recompute.
        mixed_MD = run_twice(
            self._attend,
            qkv_N3D,
            place_of_M,
            block.attn.heads,
            random=False,
        )
        return after_attention(block, memory, x_MD, mixed_MD)

    def _attend(self, qkv_N3D: Tensor, place_of_M: Tensor, heads: int) -> Tensor:
        qkv_3PD = _rows_at(qkv_N3D.flatten(0, 1), self.row_of_3P)
        sizes = [count * length for count, length in self.shapes]
        parts = qkv_3PD.split(sizes * 3)  # all queries, then all keys, then all values
        groups = len(sizes)
        mixed = []
        for group, shape in enumerate(self.shapes):
            q_KHLd, k_KHLd, v_KHLd = (
                x_PD.unflatten(0, shape).unflatten(-1, (heads, -1)).transpose(1, 2)
                for x_PD in parts[group::groups]
            )
            x_KHLd = F.scaled_dot_product_attention(q_KHLd, k_KHLd, v_KHLd, is_causal=True)
            mixed.append(x_KHLd.transpose(1, 2).flatten(2).flatten(0, 1))
        mixed_PD = mixed[0] if groups == 1 else torch.cat(mixed)
        return mixed_PD.index_select(0, place_of_M)


def prompts_to_end(model: Any, tokens_KL: Tensor) -> list[list[int]] | None:
    """Return each prompt's tokens up to the end token, or None if the output depends on more."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    text = text_tower(model)
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
    prompts: Sequence[Prompt], most_rows: int, separate: bool = False
) -> list[list[int]]:
    """Return prompts' indices in chunks of at most `most_rows` rows, or of one prompt.

    Rows are distinct prefixes; with `separate`, the prefixes of each prompt. Prompts of one length
    are neighbours, and so are those among them that begin alike. Only the first chunk may have room
    for another prompt.
    """
    order = sorted(range(len(prompts)), key=lambda k: (len(prompts[k]), *prompts[k]))
    chunks: list[list[int]] = []
    prefixes: set[tuple[int, ...]] = set()
    for k in reversed(order):
        prompt = tuple(prompts[k])
        owner = k if separate else -1
        new = {(owner, *prompt[:length]) for length in range(1, len(prompt) + 1)}
        if not chunks or len(prefixes | new) > most_rows:
            chunks.append([])
            prefixes = set()
        prefixes |= new
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


def _different(prompts: Sequence[Prompt], separate: bool) -> tuple[list[int], list[int]]:
    """Return the indices of different prompts, and the number of each prompt among these.

    With `separate`, equal prompts count as different.
    """
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    number_K: list[int] = []
    for k, prompt in enumerate(prompts):
        key = (k,) if separate else tuple(prompt)
        if key not in numbers:
            numbers[key] = len(first)
            first.append(k)
        number_K.append(numbers[key])
    return first, number_K


def _rows_at(x_ND: Tensor, row_of_P: Tensor) -> Tensor:
    """Return rows of x_ND, some of them several times."""
    rows_PD: Tensor = _RowsAt.apply(x_ND, row_of_P)
    return rows_PD


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, row_of_P: Tensor) -> Tensor:
        ctx.save_for_backward(row_of_P)
        ctx.rows = len(x_ND)
        return x_ND.index_select(0, row_of_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None]:
        (row_of_P,) = ctx.saved_tensors
        # A row shared by 1000 prompts sums 1000 gradients, so the sum must be in float32.
        # F.embedding's sums on CUDA are the same in every run; index_select's are not.
        exact_PD = grad_PD.to(torch.promote_types(grad_PD.dtype, torch.float32))
        sum_ND = torch.ops.aten.embedding_dense_backward(exact_PD, row_of_P, ctx.rows, -1, False)
        return sum_ND.to(grad_PD.dtype), None
