"""CLIP-LoRA: low-rank updates of query, key and value in every attention block.

Source: Low-Rank Few-Shot Adaptation of Vision-Language Models, arXiv 2405.18541; released code:
github MaxZanella/CLIP-LoRA.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import saved_place
from so_clip.clip.roles import Part
from so_clip.clip.towers import TOWERS, Tower
from so_clip.errors import InputError
from so_clip.methods import options
from so_clip.methods.adapter import Adapter, LowRankUpdate
from so_clip.methods.random_draws import Dropout, DropoutDraws
from so_clip.methods.weights import blocks_at, check_place

PARTS = ("q", "k", "v")


class ClipLoRA(Adapter):
    """Adds B A alpha / sqrt(rank) to the frozen matrices of query, key and value.

    A [rank, D] starts uniform in ±1/sqrt(D) (Kaiming's, with a = sqrt 5), B [D, rank] starts at
    zero, so the first logits are zero-shot CLIP's. At rank 2, both encoders of ViT-B/16 have
    184,320 trained parameters.

    In training, dropout acts on the input of A. q, k and v drop different values, and so does each
    class's prompt: prompts therefore share no rows (see Classifier). As in Classifier, the model is
    in training where gradients are recorded, unless `eval()` was called.

    Args:
        rank: columns of B, at least 1.
        alpha: scales the update, above 0.
        dropout: probability of dropping a value of the update's input, in [0, 1).
        encoder: vision | text | both.
        position: the blocks; see `blocks_at`.
        seed: of A and of dropout; the global random state does not change.
        interpolation: share of the update that the final model keeps, in [0, 1], as Weights keeps a
            share of the change of the model's matrices.

    Raises:
        InputError: an option is out of range.
    """

    half_weights = True
    plain = True

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
        self.rank, self.alpha = options.whole("rank", rank, 1), options.above_zero("alpha", alpha)
        self.dropout = options.share_below_one("dropout", dropout)
        check_place(encoder, position)
        self.encoder, self.position, self.seed = encoder, position, options.seed(seed)
        self.interpolation = options.interpolation(interpolation)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add the updates to the classifier's model and return A and B by name.

        Raises:
            InputError: an encoder has no attention at `position`, or it has updates already.
        """
        model = classifier.backbone.model
        towers = [tower for tower in TOWERS if self.encoder in (tower, "both")]
        layers = {
            name: parts
            for tower in towers
            for name, parts in self._layers(classifier, tower).items()
        }
        draws = torch.Generator().manual_seed(self.seed)
        for name, parts in layers.items():
            layer = self._with_updates(model.get_submodule(name), parts, draws)
            model.set_submodule(name, layer)
        if self.dropout:
            if "text" in towers:
                classifier.separate_prompts()
            self.draws = DropoutDraws(self.seed, classifier.backbone.mean.device)
            self.draws.attach(classifier)
        added = {
            id(value) for name in layers for value in model.get_submodule(name).updates.parameters()
        }
        return {name: value for name, value in model.named_parameters() if id(value) in added}

    def finish(self, classifier: Classifier) -> None:
        """Keep a share of the update."""
        for module in classifier.modules():
            if isinstance(module, LowRank):
                module.scale *= self.interpolation

    def resume(self, classifier: Classifier) -> None:
        """Keep the same share of the loaded update."""
        self.finish(classifier)

    def low_rank_updates(self, classifier: Classifier) -> list[LowRankUpdate]:
        """Return the updates of query, key and value in every block."""
        found = []
        for name, layer in classifier.backbone.model.named_modules():
            if isinstance(layer, LowRankLinear):
                prefix, (start, _) = saved_place(classifier.backbone.model, name)
                for part, (first, end), update in layer.parts():
                    own = f"backbone.model.{name}.updates.{part}"
                    found.append(
                        LowRankUpdate(
                            tensor=f"{prefix}weight",
                            rows=(start + first, start + end),
                            down=f"{own}.down",
                            up=f"{own}.up",
                            diagonal=None,
                            scale=update.scale,
                        )
                    )
        return found

    @torch.no_grad()
    def merge(self, classifier: Classifier) -> None:
        """Add the updates to the weights of query, key and value, and remove them."""
        model = classifier.backbone.model
        for name, module in list(model.named_modules()):
            if isinstance(module, LowRankLinear):
                model.set_submodule(name, module.merged())
        classifier.forget_classes()

    def _layers(self, classifier: Classifier, tower: Tower) -> dict[str, tuple[str, ...]]:
        """Return the layers to update, and the parts of their outputs, from input to output."""
        backbone = classifier.backbone
        inputs = [
            part
            for part in backbone.role_map()
            if part.tower == tower and part.block is not None and "attention_in" in part.roles
        ]
        other = next(name for name in TOWERS if name != tower)
        if not inputs:
            raise InputError(
                f"the {tower} encoder of {backbone.description} has no attention in its blocks, "
                "and CLIP-LoRA updates query, key and value. Adapt the other encoder alone with "
                f"adapter.encoder={other}, or take a ViT such as backbone=vit_b16."
            )
        blocks = blocks_at(self.position, backbone.block_count(tower))
        chosen = [part for part in inputs if part.block in blocks]
        if not chosen:
            numbers = sorted({part.block for part in inputs if part.block is not None})
            raise InputError(
                f"adapter.position={self.position}: none of these blocks of the {tower} encoder of "
                f"{backbone.description} has attention. The blocks with attention are "
                f"{', '.join(map(str, numbers))} of 0 to {backbone.block_count(tower) - 1}: take "
                f"last-{backbone.block_count(tower) - numbers[0]}, or all."
            )
        chosen.sort(key=lambda part: (part.block or 0, _parts_of(part)[0] != "q", part.name))
        return {self._layer_of(classifier, part): _parts_of(part) for part in chosen}

    def _layer_of(self, classifier: Classifier, part: Part) -> str:
        name, _, kind = part.name.rpartition(".")
        layer = classifier.backbone.model.get_submodule(name)
        if kind != "weight" or type(layer) is not nn.Linear:
            raise InputError(
                f"the {part.tower} encoder of {classifier.backbone.description} has attention that "
                f"CLIP-LoRA cannot be added to, or that has it already: {part.name}. Adapt the "
                "other encoder alone with adapter.encoder=, or take another backbone."
            )
        return name

    def _with_updates(
        self, frozen: nn.Linear, parts: tuple[str, ...], draws: torch.Generator
    ) -> "LowRankLinear":
        width, rows = frozen.in_features, frozen.out_features // len(parts)
        if self.rank > min(width, rows):
            raise InputError(
                f"adapter.rank={self.rank}: a matrix {min(width, rows)} wide has no higher rank "
                f"than {min(width, rows)}."
            )
        device = frozen.weight.device
        updates = {}
        for part in parts:
            down_RI = torch.empty(self.rank, width)
            nn.init.kaiming_uniform_(down_RI, a=math.sqrt(5), generator=draws)
            up_OR = torch.zeros(rows, self.rank, device=device)
            scale = self.alpha / math.sqrt(self.rank)
            updates[part] = LowRank(down_RI.to(device), up_OR, scale, self.dropout)
        return LowRankLinear(frozen, updates)


def _parts_of(part: Part) -> tuple[str, ...]:
    """Return which of query, key and value a matrix has."""
    return tuple(name[0] for name in ("query", "key", "value") if name in part.roles) or PARTS


class LowRank(nn.Module):
    """The update of one matrix: x -> scale · B A x, with dropout on x in training.

    Args:
        down_RI, up_OR: A and B, in float32 (R: rank; I, O: inputs and outputs).
        scale: alpha / sqrt(rank).
        dropout: probability of dropping a value of x.
    """

    def __init__(self, down_RI: Tensor, up_OR: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down_RI), nn.Parameter(up_OR)
        self.scale, self.dropout = scale, Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update [..., O] of x [..., I]."""
        # torch multiplies transposed rows in another order if the matrix needs a gradient, so a
        # trained and a loaded model would differ in the last bit.
        x = self.dropout(x).contiguous()
        return F.linear(F.linear(x, self.down) * self.scale, self.up)


class LowRankLinear(nn.Linear):
    """A frozen linear layer with updates of equal, consecutive parts of its outputs.

    Args:
        frozen: its parameters are shared, not copied, and keep their names.
        updates: by part, in the order of the outputs.
    """

    def __init__(self, frozen: nn.Linear, updates: dict[str, LowRank]) -> None:
        super().__init__(frozen.in_features, frozen.out_features, bias=False, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        self.updates = nn.ModuleDict(updates)

    def parts(self) -> Iterator[tuple[str, tuple[int, int], LowRank]]:
        """Yield each part, its rows in the weight (first, after the last), and its update."""
        first = 0
        for part, update in self.updates.items():
            assert isinstance(update, LowRank)
            yield part, (first, first + len(update.up)), update
            first += len(update.up)

    def merged(self) -> nn.Linear:
        """Add the updates to the weight; return a plain linear layer with this weight."""
        for _, (first, end), update in self.parts():
            change_OI = update.scale * update.up.double() @ update.down.double()
            self.weight[first:end] = self.weight[first:end].double() + change_OI
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain

    def forward(self, x: Tensor) -> Tensor:
        """Return the frozen layer's output plus the updates."""
        update = torch.cat([update(x) for update in self.updates.values()], dim=-1)
        return super().forward(x) + update
