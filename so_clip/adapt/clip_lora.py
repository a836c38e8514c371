"""CLIP-LoRA: low-rank updates of query, key and value in every attention block.

Source: Low-Rank Few-Shot Adaptation of Vision-Language Models, arXiv 2405.18541; released code:
github MaxZanella/CLIP-LoRA.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter
from so_clip.adapt.dropout import Draws, dropped
from so_clip.adapt.weights import blocks_at, check_interpolation, check_place
from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.classifier import TOWERS, Classifier
from so_clip.errors import InputError

PARTS = ("q", "k", "v")


class ClipLoRA(Adapter):
    """Adds B A alpha / sqrt(rank) to the matrices of query, key and value, none of which changes.

    A [rank, D] starts uniform in ±1/sqrt(D) (Kaiming's, with a = sqrt 5), B [D, rank] at zero: at
    first the model is the one that came. At rank 2, both encoders of ViT-B/16 have 184,320 of them.

    In training, what A multiplies has values dropped at random, for each of q, k and v others, and
    in each class's prompt others: prompts therefore share no rows (see Classifier). As in
    Classifier, training is where gradients are recorded; `eval()` also ends it.

    Args:
        rank: columns of B, at least 1.
        alpha: scales the update, above 0.
        dropout: the probability with which a value of the update's input is dropped, in [0, 1).
        encoder: vision | text | both.
        position: which blocks; see `blocks_at`.
        seed: of A and of what is dropped; the global random state is left alone.
        interpolation: the share of the update that is kept at the end, in [0, 1], as in Weights: of
            what the model's matrices would be with the update inside.
    """

    def __init__(
        self,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        encoder: str = "both",
        position: str = "all",
        seed: int = 0,
        interpolation: float = 1.0,
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise InputError(f"adapter.rank={rank}: must be a whole number, at least 1.")
        if not _is_number(alpha) or not 0 < alpha < math.inf:
            raise InputError(f"adapter.alpha={alpha}: must be a finite number above 0.")
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise InputError(f"adapter.dropout={dropout}: must be a number in [0, 1).")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"adapter.seed={seed}: must be a whole number from 0 to 2^63 - 1.")
        check_place(encoder, position)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.encoder, self.position, self.seed = encoder, position, seed
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add the matrices to the classifier's model and return them by name.

        Raises:
            InputError: an encoder is not made of open_clip's attention blocks.
        """
        towers = [tower for tower in TOWERS if self.encoder in (tower, "both")]
        chosen = [
            attention for tower in towers for attention in self._attentions(classifier, tower)
        ]
        draws = torch.Generator().manual_seed(self.seed)
        for attention in chosen:
            attention.in_proj = self._beside(attention.in_proj, draws)
        if self.dropout:
            if "text" in towers:
                classifier.keep_prompts_apart()
            self.draws = Draws(self.seed, classifier.backbone.mean.device)
            self.draws.serve(classifier)
        own = {id(value) for attention in chosen for value in _added(attention)}
        named = classifier.backbone.model.named_parameters()
        return {name: value for name, value in named if id(value) in own}

    def finish(self, classifier: Classifier) -> None:
        """Keep a share of the update."""
        for module in classifier.modules():
            if isinstance(module, LowRank):
                module.scale *= self.interpolation

    def resume(self, classifier: Classifier) -> None:
        """Keep the same share of an update that was loaded."""
        self.finish(classifier)

    def _attentions(self, classifier: Classifier, tower: Any) -> list[Any]:
        blocks = classifier.backbone.blocks(tower)
        attentions: list[Any] = [blocks[i].attn for i in blocks_at(self.position, len(blocks))]
        for attention in attentions:
            explicit = isinstance(attention, ExplicitAttention)
            if not explicit or type(attention.in_proj) is not nn.Linear:
                raise InputError(_REFUSAL.format(tower, classifier.backbone.description))
        return attentions

    def _beside(self, frozen: nn.Linear, draws: torch.Generator) -> "LowRankLinear":
        width, scale = frozen.in_features, self.alpha / math.sqrt(self.rank)
        if self.rank > width:
            raise InputError(
                f"adapter.rank={self.rank}: a matrix {width} wide has no higher rank than {width}."
            )
        device = frozen.weight.device
        updates = {}
        for part in PARTS:
            down_RD = torch.empty(self.rank, width)
            nn.init.kaiming_uniform_(down_RD, a=math.sqrt(5), generator=draws)
            up_DR = torch.zeros(width, self.rank, device=device)
            updates[part] = LowRank(down_RD.to(device), up_DR, scale, self.dropout)
        return LowRankLinear(frozen, updates)


class LowRank(nn.Module):
    """The update of one matrix: x -> scale · B A x, with dropout on x while in training.

    Args:
        down_RI, up_OR: A and B, in float32 (R: rank; I, O: inputs and outputs).
        scale: see above.
        dropout: the probability with which a value of x is dropped.
    """

    def __init__(self, down_RI: Tensor, up_OR: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down_RI), nn.Parameter(up_OR)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the update [..., O] of x [..., I]."""
        if self.training:
            x = dropped(x, self.dropout)
        return F.linear(F.linear(x, self.down) * self.scale, self.up)


class LowRankLinear(nn.Linear):
    """A frozen linear layer and updates of equal parts of its outputs, one after the other.

    Args:
        frozen: its parameters are taken over, not copied, and keep their names.
        updates: by part, in the order of the outputs.
    """

    def __init__(self, frozen: nn.Linear, updates: dict[str, LowRank]) -> None:
        super().__init__(frozen.in_features, frozen.out_features, bias=False, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        self.updates = nn.ModuleDict(updates)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the frozen layer does, plus the updates."""
        update = torch.cat([update(x) for update in self.updates.values()], dim=-1)
        return super().forward(x) + update


def _added(attention: ExplicitAttention) -> list[nn.Parameter]:
    assert isinstance(attention.in_proj, LowRankLinear)
    return list(attention.in_proj.updates.parameters())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_REFUSAL = (
    "the {} encoder of {} has attention that CLIP-LoRA cannot be added to, or that has it already. "
    "Take a ViT such as backbone=vit_b16, or adapt the other encoder alone with adapter.encoder=."
)
