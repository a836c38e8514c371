"""Train weights of the model itself, selected by name, tower and depth."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from so_clip.clip.backbone import Tower
from so_clip.clip.classifier import TOWERS, Classifier, tower_of
from so_clip.errors import InputError, nearest
from so_clip.methods import options
from so_clip.methods.adapter import Adapter, FewShots

# The blocks of a position, as fractions of a tower's depth. CLIP-LoRA's and SO's tables for 12
# blocks (bottom = 0-3, half-up = 6-11, ...), generalised to any depth.
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
# The scale of logits is a setting (backbone.logit_scale): these parameters never get a gradient.
_UNUSED = ("logit_scale", "logit_bias")


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
    """Trains the parameters whose names end with one of `patterns`.

    The default patterns, both encoders and every position select SO's 96 matrices of ViT-B/16
    (122,683,392 weights): attention in- and out-projections and both MLP matrices of 12 + 12 blocks
    (nairouz/SO).

    Args:
        patterns: endings of parameter names. An ending starts at a whole component of the name
            (`mlp.c_fc.weight`). `*` matches anything; `*` alone selects every weight. A pattern
            that matches nothing is an error.
        encoder: vision | text | both.
        position: the blocks, for any depth; see `blocks_at`. Parameters outside the residual blocks
            are selected only with position=all.
        interpolation: a, in [0, 1]. The final weights are (1 - a) · original + a · trained
            (WiSE-FT, arXiv 2109.01903). Below 1, the host keeps a copy of the original weights
            in training.

    Raises:
        InputError: an option is out of range.
    """

    half_weights = True
    plain = True

    def __init__(
        self,
        patterns: Sequence[str],
        encoder: str = "both",
        position: str = "all",
        interpolation: float = 1.0,
    ) -> None:
        valid = patterns and not isinstance(patterns, str)
        if not valid or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"adapter.patterns={patterns!r}: must be a list of name endings.")
        check_place(encoder, position)
        self.patterns, self.encoder, self.position = list(patterns), encoder, position
        self.interpolation = options.interpolation(interpolation)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open the selected parameters of the classifier's model; return them by name.

        Raises:
            InputError: a pattern, or the position, selects nothing.
        """
        selected = self.select(classifier)
        for parameter in selected.values():
            parameter.requires_grad_(True)
        return selected

    def select(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Return the selected parameters without opening them; raises as `__call__` does."""
        named = dict(classifier.backbone.model.named_parameters())
        candidates = {
            name: parameter
            for name, parameter in named.items()
            if self._is_candidate(name, classifier)
        }
        selected: dict[str, nn.Parameter] = {}
        for pattern in self.patterns:
            anything = re.escape(pattern).replace(r"\*", ".*")
            ending = re.compile(rf"(^|\.){anything}$")
            matched = {name: value for name, value in candidates.items() if ending.search(name)}
            if not matched:
                raise InputError(
                    f"adapter.patterns: {pattern!r} matches no parameter with "
                    f"encoder={self.encoder}, position={self.position}."
                    f"{nearest(pattern, {name.split('.', 1)[-1] for name in named})}"
                )
            selected |= matched
        self._check_both_encoders(classifier, set(map(tower_of, selected)))
        return selected

    def _check_both_encoders(self, classifier: Classifier, found: set[Tower]) -> None:
        """Refuse an encoder without blocks, such as a ResNet, in which no pattern matches."""
        for tower in TOWERS:
            if self.encoder != "both" or tower in found:
                continue
            try:
                classifier.backbone.blocks(tower)
            except InputError as error:
                raise InputError(
                    f"adapter.patterns={self.patterns}: none is in the {tower} encoder: {error}"
                ) from error

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Copy the original weights if `finish` needs them."""
        if self.interpolation < 1:
            opened = {name: p for name, p in classifier.named().items() if p.requires_grad}
            classifier.before = _WeightCopies(opened)

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

    def _is_candidate(self, name: str, classifier: Classifier) -> bool:
        tower = tower_of(name)
        if name in _UNUSED or self.encoder not in (tower, "both"):
            return False
        if self.position == "all":
            return True
        block = re.search(r"resblocks\.(\d+)\.", name)
        depth = classifier.backbone.block_count(tower)
        return block is not None and int(block[1]) in blocks_at(self.position, depth)


class _WeightCopies(nn.Module):
    """Copies of weights on the host. State dicts and the device's memory count leave them out."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {
            name: value.detach().to("cpu", copy=True) for name, value in named.items()
        }
