"""Train a fixed set of entries of the model's own weights: random ones, or those of large weights.

Tensor names end in their shape: M trained entries of one parameter.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from so_clip import checks
from so_clip.checks import AutoFlag
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.fixed_entries import (
    FixedEntries,
    draw_entries,
    entry_count,
    fixed_entries,
)
from so_clip.clip.roles import SPLIT, Part
from so_clip.errors import InputError
from so_clip.methods import options
from so_clip.methods.adapter import Adapter
from so_clip.methods.entry_choice import Candidates, largest, shares, split_places
from so_clip.methods.weights import Weights

AUTO: Literal["auto"] = "auto"
SELECTIONS = ("random", "magnitude")
_WAY_OUT = "Take a smaller number, more roles or blocks, or adapter.allow_fewer=true to train all."


class Entries(Adapter):
    """Trains `count` entries of the selected parameters, always the same ones.

        W = W0 + scatter(values at the chosen entries), with values that start at zero

    The values of a parameter are one trained tensor, so AdamW has state for the chosen entries
    alone. The finished model is CLIP's weights with other values at these entries.

    Args:
        selection: random: every subset is equally likely (SpaRTA, SO's static supports).
            magnitude: the entries with the largest absolute values before training.
        roles, encoder, position: select the parameters; see Weights. query, key and value select
            rows if the three are one matrix.
        count: the number of trained entries, in all parameters together.
        density_ratio: in place of `count`: as many entries as SO keeps at this density ratio in
            all matrices of `encoder`, whatever roles and position are. So methods with the same
            ratio train the same number of entries.
        per_matrix: each parameter gets a part of the number in proportion to its size. If false,
            the entries of all parameters compete.
        allow_fewer: train all entries of the selection if it has fewer. If false, this is an error.
        seed: of the draw, and of the choice among equal magnitudes.
        interpolation: a, in [0, 1]. The final weights are original + a · values (WiSE-FT).
        sampled_gradients: compute only the chosen entries of a matrix's gradient: auto (where this
            is faster) | true | false.

    Raises:
        InputError: an option is out of range.

    Source: SpaRTA, arXiv 2502.15975; github IBM/SpaRTA.
    """

    for_sentences = True
    plain = True

    def __init__(
        self,
        selection: str = "random",
        roles: Sequence[str] = ("matrices",),
        encoder: str = "both",
        position: str = "all",
        count: int | None = None,
        density_ratio: float | None = None,
        per_matrix: bool = True,
        allow_fewer: bool = False,
        seed: int = 0,
        interpolation: float = 1.0,
        sampled_gradients: AutoFlag = AUTO,
    ) -> None:
        self.selection = checks.one_of("adapter.selection", selection, SELECTIONS)
        self.places = _Places(roles, encoder, position)
        if (count is None) == (density_ratio is None):
            raise InputError(
                f"adapter.count={count}, adapter.density_ratio={density_ratio}: give one of the "
                "two, and set the other to null."
            )
        self.count = None if count is None else options.whole("count", count, 1)
        self.density_ratio = None if density_ratio is None else options.density(density_ratio)
        self.per_matrix = options.flag("per_matrix", per_matrix)
        self.allow_fewer = options.flag("allow_fewer", allow_fewer)
        self.seed = options.seed(seed)
        self.interpolation = options.interpolation(interpolation)
        if sampled_gradients != AUTO:
            options.flag("sampled_gradients", sampled_gradients)
        self.sampled_gradients = sampled_gradients

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Choose the entries and add their values to the classifier's model.

        Raises:
            InputError: the model has no such parameters, or fewer entries.
        """
        model = classifier.backbone.model
        candidates = self.candidates(classifier)
        sizes = self._sizes(classifier, candidates)
        chosen = zip(candidates, self._choose(candidates, sizes), strict=True)
        entries = [
            FixedEntries(model, candidate.name, candidate.index_of(place_M), self.sampled_gradients)
            for candidate, place_M in chosen
            if len(place_M)
        ]
        return {entry.values_name: entry.values_M for entry in entries}

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Put the new values into the weights."""
        _write(classifier)
        return ()

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Put the restored values into the weights."""
        super().load_training_state(classifier, state)
        _write(classifier)

    def finish(self, classifier: Classifier) -> None:
        """Keep a share of the values."""
        if self.interpolation < 1:
            _write(classifier, self.interpolation)

    def rewritten(self, classifier: Classifier) -> dict[str, Tensor]:
        """Return the parameters that have trained entries."""
        model = classifier.backbone.model
        changed = {id(entries.weight) for entries in fixed_entries(model)}
        state = model.state_dict(keep_vars=True)
        return {name: value.detach() for name, value in state.items() if id(value) in changed}

    def merge(self, classifier: Classifier) -> None:
        """Remove the values: the weights have them already."""
        for entries in list(fixed_entries(classifier.backbone.model)):
            entries.remove()

    def candidates(self, classifier: Classifier) -> list[Candidates]:
        """Return the entries that can be chosen, of each selected parameter."""
        named = dict(classifier.backbone.model.named_parameters())
        return [
            Candidates(part.name, named[part.name], self.places.ranges(part))
            for part in self.places.selected_parts(classifier)
        ]

    def _sizes(self, classifier: Classifier, candidates: Sequence[Candidates]) -> list[int]:
        """Return the number of entries of each parameter, in proportion to its candidates."""
        numels = [candidate.count for candidate in candidates]
        count, option = self.count, f"adapter.count={self.count}"
        if self.density_ratio is not None:
            numel_of = _matrices(classifier, self.places.encoder)
            so = {name: entry_count(n, self.density_ratio) for name, n in numel_of.items()}
            if numel_of == {candidate.name: candidate.count for candidate in candidates}:
                return [so[candidate.name] for candidate in candidates]
            count = sum(so.values())
            option = f"adapter.density_ratio={self.density_ratio:g} ({count} entries)"
        assert count is not None
        if count <= sum(numels):
            return shares(count, numels)
        if self.allow_fewer:
            return numels
        raise InputError(
            f"{option}: adapter.roles={self.places.roles} has {sum(numels)} entries in "
            f"{classifier.backbone.description} with encoder={self.places.encoder}, "
            f"position={self.places.position}. {_WAY_OUT}"
        )

    def _choose(self, candidates: Sequence[Candidates], sizes: Sequence[int]) -> Iterable[Tensor]:
        """Return the ascending places among the candidates of each parameter."""
        if any(isinstance(candidate.parameter, FakeTensor) for candidate in candidates):
            return [torch.arange(size) for size in sizes]  # as in a forecast: only sizes matter
        numels = [candidate.count for candidate in candidates]
        scores = self.scores(candidates)
        if scores is None:
            if self.per_matrix:
                return draw_entries(numels, sizes, self.seed)
            (place,) = draw_entries([sum(numels)], [sum(sizes)], self.seed)
            return split_places(place, numels)
        if self.per_matrix:
            pairs = zip(scores, sizes, strict=True)
            return [largest([score_C], size, self.seed)[0] for score_C, size in pairs]
        return largest([*scores], sum(sizes), self.seed)

    def scores(self, candidates: Sequence[Candidates]) -> Iterable[Tensor] | None:
        """Return a score [C] of each candidate; the largest are chosen. None: they are drawn."""
        if self.selection == "random":
            return None
        return (candidate.values_of(candidate.parameter).abs() for candidate in candidates)


class _Places(Weights):
    """Selects as Weights does. Query, key and value can be rows of one matrix."""

    def roles_of(self, part: Part) -> frozenset[str]:
        """Return the part's roles, and those of its rows."""
        is_fused = "attention_in" in part.roles and not part.roles & {*SPLIT}
        return part.roles | {*SPLIT} if is_fused else part.roles

    def ranges(self, part: Part) -> tuple[tuple[int, int], ...]:
        """Return the ranges of the part's flat entries that the roles select."""
        numel = math.prod(part.shape)
        if part.roles & self.wanted:
            return ((0, numel),)
        third = numel // 3
        rows = [i for i, role in enumerate(SPLIT) if role in self.wanted]
        return tuple((i * third, (i + 1) * third) for i in rows)


def _matrices(classifier: Classifier, encoder: str) -> dict[str, int]:
    """Return the sizes of the matrices that SO trains by default, by name."""
    parts = Weights(encoder=encoder).selected_parts(classifier)
    return {part.name: math.prod(part.shape) for part in parts}


def _write(classifier: Classifier, share: float = 1.0) -> None:
    for entries in fixed_entries(classifier.backbone.model):
        entries.write(share)
