"""Train weights of the model itself, selected by role, tower and depth."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from so_clip.clip.adaptable import Encoder
from so_clip.clip.classifier import Classifier
from so_clip.clip.roles import GROUPS, SPLIT, Part, named_roles
from so_clip.clip.towers import TOWERS
from so_clip.errors import InputError, nearest
from so_clip.methods import options
from so_clip.methods.adapter import Adapter, FewShots

# The blocks of a position, as fractions of a tower's depth. CLIP-LoRA's and SO's tables for 12
# blocks (bottom = 0-3, half-up = 6-11, ...), generalised to any depth.
_FRACTIONS = {
    "all": (0, 1),
    "blocks": (0, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
}
_LAST = {"top": 1, "top2": 2, "top3": 3}
POSITIONS = (*_FRACTIONS, *_LAST)
ENCODERS = (*TOWERS, "both")


def blocks_at(position: str, depth: int) -> range:
    """Return the indices of the blocks at `position` in a tower of `depth` blocks.

    Raises:
        InputError: the position is unknown.
    """
    last = re.fullmatch(r"last-([1-9]\d{0,3})", str(position))
    count = int(last[1]) if last else _LAST.get(str(position))
    if count is not None:
        return range(max(0, depth - count), depth)
    if not isinstance(position, str) or position not in _FRACTIONS:
        raise InputError(
            f"adapter.position={position}: must be one of {', '.join(POSITIONS)}, or last-N for "
            f"the last N blocks.{nearest(position, POSITIONS)}"
        )
    low, high = _FRACTIONS[position]
    return range(round(low * depth), round(high * depth))


def check_place(encoder: str, position: str) -> None:
    """Raise InputError unless these are known encoders and blocks."""
    if encoder not in ENCODERS:
        raise InputError(
            f"adapter.encoder={encoder}: must be {', '.join(ENCODERS)}.{nearest(encoder, ENCODERS)}"
        )
    blocks_at(position, 1)


class Weights(Adapter):
    """Trains the parameters that have one of `roles`.

    The default roles, both encoders and every position select SO's 96 matrices of ViT-B/16
    (122,683,392 weights): attention in- and out-projections and both MLP matrices of 12 + 12 blocks
    (nairouz/SO).

    Args:
        roles: names of roles and groups; see so_clip.clip.roles. A group takes what the model has
            of it. A role that the model does not have is an error.
        encoder: vision | text | both.
        position: the blocks, for any depth; see `blocks_at`. Parameters outside the residual blocks
            are selected only with position=all.
        interpolation: a, in [0, 1]. The final weights are (1 - a) · original + a · trained
            (WiSE-FT, arXiv 2109.01903). Below 1, the host keeps a copy of the original weights
            in training.

    Raises:
        InputError: an option is out of range.
    """

    for_sentences = True
    half_weights = True
    plain = True

    def __init__(
        self,
        roles: Sequence[str] = ("matrices",),
        encoder: str = "both",
        position: str = "all",
        interpolation: float = 1.0,
    ) -> None:
        if not roles or isinstance(roles, str):
            raise InputError(f"adapter.roles={roles!r}: must be a list of roles.")
        check_place(encoder, position)
        self.wanted = named_roles(roles)
        self.roles, self.encoder, self.position = list(roles), encoder, position
        self.interpolation = options.interpolation(interpolation)
        self._opened: dict[str, nn.Parameter] = {}

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open the selected parameters of the classifier's model; return them by name.

        Raises:
            InputError: the model has no such parameters, in all or in one encoder.
        """
        selected = self.select(classifier)
        for parameter in selected.values():
            parameter.requires_grad_(True)
        self._opened = selected
        return selected

    def select(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Return the selected parameters without opening them; raises as `__call__` does."""
        named = dict(classifier.backbone.model.named_parameters())
        parts = self.selected_parts(classifier)
        return {part.name: named[part.name] for part in parts}

    def selected_parts(self, classifier: Classifier) -> list[Part]:
        """Return the selected parameters' entries of the role map; raises as `__call__` does."""
        return self.parts_of(classifier.backbone)

    def parts_of(self, backbone: Encoder) -> list[Part]:
        """Return the same for a backbone."""
        parts = [part for part in backbone.role_map() if self.encoder in (part.tower, "both")]
        if self.position != "all":
            blocks = {
                tower: blocks_at(self.position, backbone.block_count(tower))
                for tower in {part.tower for part in parts}
            }
            parts = [part for part in parts if part.block in blocks[part.tower]]
        # SO draws supports in this order, so it is part of a result: role by role.
        selected = [part for part in parts if self.roles_of(part) & self.wanted]
        selected.sort(key=_matrix_role)
        self._check_roles(selected, parts, backbone.description)
        self._check_towers(selected, backbone)
        return selected

    def roles_of(self, part: Part) -> frozenset[str]:
        """Return the roles for which a parameter is selected."""
        return part.roles

    def _check_roles(self, selected: Sequence[Part], parts: Sequence[Part], model: str) -> None:
        """Refuse a role that no parameter has. A group takes what there is."""
        missing = [
            role
            for role in self.roles
            if role not in GROUPS and not any(role in self.roles_of(part) for part in selected)
        ]
        if not missing:
            return
        way_out = "`python -m so_clip backbones NAME` prints the roles of a model."
        if missing[0] in SPLIT and any("attention_in" in part.roles for part in parts):
            way_out = (
                "Query, key and value are one matrix here: choose attention_in, or "
                "adapter.split_qkv=true if the method has this option."
            )
        raise InputError(
            f"adapter.roles={self.roles}: no parameter of {model} has the role {missing[0]!r} with "
            f"encoder={self.encoder}, position={self.position}. {way_out}"
        )

    def _check_towers(self, selected: Sequence[Part], backbone: Encoder) -> None:
        """Refuse an encoder in which nothing is selected."""
        towers = [tower for tower in backbone.towers if self.encoder in (tower, "both")]
        if not towers:
            raise InputError(
                f"adapter.encoder={self.encoder}: {backbone.description} has no such encoder. "
                "Leave it out."
            )
        for tower in towers:
            if not any(part.tower == tower for part in selected):
                others = [other for other in towers if other != tower]
                way_out = f", or adapter.encoder={others[0]}" if others else ""
                raise InputError(
                    f"adapter.roles={self.roles}: the {tower} encoder of "
                    f"{backbone.description} has none of them with "
                    f"position={self.position}. Choose other roles{way_out}."
                )

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Copy the original weights if `finish` needs them."""
        if self.interpolation < 1:
            classifier.before = _WeightCopies(self._opened)

    @torch.no_grad()
    def finish(self, classifier: Classifier) -> None:
        """Interpolate between the original and the trained weights."""
        if self.interpolation < 1:
            assert isinstance(classifier.before, _WeightCopies)
            trained = classifier.named()
            for name, before in classifier.before.weights.items():
                before = before.to(trained[name].device)
                trained[name].copy_(torch.lerp(before, trained[name], self.interpolation))
            del classifier.before


def _matrix_role(part: Part) -> int:
    """Return the place of a matrix's role in the group; other parts come after all matrices."""
    matrices = GROUPS["matrices"]
    return min((matrices.index(role) for role in part.roles & {*matrices}), default=len(matrices))


class _WeightCopies(nn.Module):
    """Copies of weights on the host. State dicts and the device's memory count leave them out."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {
            name: value.detach().to("cpu", copy=True) for name, value in named.items()
        }
