"""Train weights of the model itself, chosen by name, tower and depth."""

import re
from collections.abc import Sequence

from torch import nn

from so_clip.adapt.adapter import Adapter
from so_clip.clip.classifier import TOWERS, Classifier, tower_of
from so_clip.errors import InputError, nearest

# Which blocks a position names, as fractions of a tower's depth: CLIP-LoRA's and SO's tables for
# 12 blocks (bottom = 0-3, half-up = 6-11, ...) carried to any depth.
_FRACTIONS = {
    "all": (0, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
}
_LAST = {"top": 1, "top2": 2, "top3": 3}
POSITIONS = (*_FRACTIONS, *_LAST)
ENCODERS = (*TOWERS, "both")
# The scale of logits is a setting here (backbone.logit_scale): a gradient would never reach these.
_UNUSED = ("logit_scale", "logit_bias")


def blocks_at(position: str, depth: int) -> range:
    """Return the indices of the blocks that `position` names in a tower of `depth` blocks.

    Raises:
        InputError: an unknown position.
    """
    last = re.fullmatch(r"last-([1-9]\d{0,3})", str(position))
    count = int(last[1]) if last else _LAST.get(str(position))
    if count is not None:
        return range(max(0, depth - count), depth)
    if position not in _FRACTIONS:
        raise InputError(
            f"adapter.position={position}: must be one of {', '.join(POSITIONS)}, or last-N for so many blocks."
            f"{nearest(position, POSITIONS)}"
        )
    low, high = _FRACTIONS[position]
    return range(round(low * depth), round(high * depth))


def check_place(encoder: str, position: str) -> None:
    """Raise InputError unless these name encoders and blocks."""
    if encoder not in ENCODERS:
        raise InputError(
            f"adapter.encoder={encoder}: must be {', '.join(ENCODERS)}.{nearest(encoder, ENCODERS)}"
        )
    blocks_at(position, 1)


class Weights(Adapter):
    """Selects parameters whose name ends with one of `patterns`.

    With the default patterns, both encoders and every position these are SO's 96 matrices of
    ViT-B/16 (122,683,392 weights): attention in- and out-projections and both MLP matrices of
    12 + 12 blocks (nairouz/SO).

    Args:
        patterns: name endings, from a whole-component boundary (`mlp.c_fc.weight`), in which *
            stands for anything: `*` alone is every weight. One that matches nothing is an error,
            and so is an encoder, of those asked for, in which none does.
        encoder: vision | text | both.
        position: which blocks, for any depth; see `blocks_at`. Parameters outside the residual
            blocks take part only with position=all.
    """

    def __init__(
        self, patterns: Sequence[str], encoder: str = "both", position: str = "all"
    ) -> None:
        if not patterns or isinstance(patterns, str) or not all(map(_is_text, patterns)):
            raise InputError(f"adapter.patterns={patterns!r}: must be a list of name endings.")
        check_place(encoder, position)
        self.patterns, self.encoder, self.position = list(patterns), encoder, position

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Mark and return the selected parameters of the classifier's model by name.

        Raises:
            InputError: a pattern, or the position, selects nothing.
        """
        named = dict(classifier.backbone.model.named_parameters())
        in_reach = {
            name: parameter for name, parameter in named.items() if self._in_reach(name, classifier)
        }
        selected: dict[str, nn.Parameter] = {}
        for pattern in self.patterns:
            ending = re.compile(rf"(^|\.){re.escape(pattern).replace(r'\*', '.*')}$")
            matched = {name: value for name, value in in_reach.items() if ending.search(name)}
            if not matched:
                raise InputError(
                    f"adapter.patterns: {pattern!r} matches no parameter with "
                    f"encoder={self.encoder}, position={self.position}."
                    f"{nearest(pattern, {name.split('.', 1)[-1] for name in named})}"
                )
            selected |= matched
        for tower in TOWERS:
            if self.encoder == "both" and tower not in set(map(tower_of, selected)):
                raise InputError(
                    f"adapter.patterns={self.patterns}: the {tower} encoder of "
                    f"{classifier.backbone.description} has none of these. Train the other alone "
                    f"with adapter.encoder={TOWERS[1 - TOWERS.index(tower)]}."
                )
        for parameter in selected.values():
            parameter.requires_grad_(True)
        return selected

    def _in_reach(self, name: str, classifier: Classifier) -> bool:
        if name in _UNUSED:
            return False
        tower = tower_of(name)
        if self.encoder not in (tower, "both"):
            return False
        if self.position == "all":
            return True
        block = re.search(r"resblocks\.(\d+)\.", name)
        depth = classifier.backbone.block_count(tower)
        return block is not None and int(block[1]) in blocks_at(self.position, depth)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
