"""Train weights of the model itself, chosen by name, tower and depth."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.checks import number
from so_clip.clip.backbone import Tower
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
    if not isinstance(position, str) or position not in _FRACTIONS:
        raise InputError(
            f"adapter.position={position}: must be one of {', '.join(POSITIONS)}, or last-N for "
            f"so many blocks.{nearest(position, POSITIONS)}"
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


def check_interpolation(value: float) -> float:
    """Return the share of the adapted weights that is kept; InputError if it is none."""
    share = number("adapter.interpolation", value)
    if not 0 <= share <= 1:
        raise InputError(f"adapter.interpolation={value}: must lie in [0, 1]; 1 keeps all.")
    return share


class Weights(Adapter):
    """Selects parameters whose name ends with one of `patterns`.

    With the default patterns, both encoders and every position these are SO's 96 matrices of
    ViT-B/16 (122,683,392 weights): attention in- and out-projections and both MLP matrices of
    12 + 12 blocks (nairouz/SO).

    Args:
        patterns: name endings, from a whole-component boundary (`mlp.c_fc.weight`), in which *
            stands for anything: `*` alone is every weight. One that matches nothing is an error.
        encoder: vision | text | both.
        position: which blocks, for any depth; see `blocks_at`. Parameters outside the residual
            blocks take part only with position=all.
        interpolation: a, in [0, 1]: the weights end as (1 - a) · those from before + a · the
            trained ones (WiSE-FT, arXiv 2109.01903). Below 1, the weights from before are kept on
            the host meanwhile.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        encoder: str = "both",
        position: str = "all",
        interpolation: float = 1.0,
    ) -> None:
        if not patterns or isinstance(patterns, str) or not all(map(_is_text, patterns)):
            raise InputError(f"adapter.patterns={patterns!r}: must be a list of name endings.")
        check_place(encoder, position)
        self.patterns, self.encoder, self.position = list(patterns), encoder, position
        self.interpolation = check_interpolation(interpolation)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Mark and return the selected parameters of the classifier's model by name.

        Raises:
            InputError: a pattern, or the position, selects nothing.
        """
        selected = self.select(classifier)
        for parameter in selected.values():
            parameter.requires_grad_(True)
        return selected

    def select(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Return what a call would mark, and mark nothing; the same InputErrors."""
        named = dict(classifier.backbone.model.named_parameters())
        in_reach = {
            name: parameter for name, parameter in named.items() if self._in_reach(name, classifier)
        }
        selected: dict[str, nn.Parameter] = {}
        for pattern in self.patterns:
            anything = re.escape(pattern).replace(r"\*", ".*")
            ending = re.compile(rf"(^|\.){anything}$")
            matched = {name: value for name, value in in_reach.items() if ending.search(name)}
            if not matched:
                raise InputError(
                    f"adapter.patterns: {pattern!r} matches no parameter with "
                    f"encoder={self.encoder}, position={self.position}."
                    f"{nearest(pattern, {name.split('.', 1)[-1] for name in named})}"
                )
            selected |= matched
        self._refuse_half(classifier, set(map(tower_of, selected)))
        return selected

    def _refuse_half(self, classifier: Classifier, found: set[Tower]) -> None:
        """Name an encoder that has other layers than these patterns know, such as a ResNet."""
        for tower in TOWERS:
            if self.encoder != "both" or tower in found:
                continue
            try:
                classifier.backbone.blocks(tower)
            except InputError as error:
                raise InputError(
                    f"adapter.patterns={self.patterns}: none is in the {tower} encoder: {error}"
                ) from error

    def start(self, classifier: Classifier, support: Support) -> None:
        """Keep the weights as they are now, if they are asked for at the end."""
        if self.interpolation < 1:
            opened = {name: p for name, p in classifier.named().items() if p.requires_grad}
            classifier.before = _Before(opened)

    @torch.no_grad()
    def finish(self, classifier: Classifier) -> None:
        """Go back from the trained weights, as far as `interpolation` says."""
        if self.interpolation < 1:
            assert isinstance(classifier.before, _Before)
            trained = classifier.named()
            for name, before in classifier.before.weights.items():
                before = before.to(trained[name].device)
                trained[name].copy_(torch.lerp(before, trained[name], self.interpolation))
            self.resume(classifier)

    def resume(self, classifier: Classifier) -> None:
        """Keep the weights from before no longer."""
        if self.interpolation < 1:
            del classifier.before

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


class _Before(nn.Module):
    """Copies of weights on the host, in no state dict and in no count of the device's memory."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {
            name: value.detach().to("cpu", copy=True) for name, value in named.items()
        }
