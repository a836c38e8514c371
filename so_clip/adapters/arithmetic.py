"""Sums, multiples and differences of adapters."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from so_clip.adapters.about import About, Base, LowRank
from so_clip.adapters.change import Change, change_between, combined
from so_clip.adapters.file import FLOATS, SavedAdapter, check_saved, saved_adapter
from so_clip.checks import number
from so_clip.clip.backbone import Backbone, sha256_of_weights
from so_clip.clip.classifier import Classifier
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.checkpoint import read_weights
from so_clip.clip.logit_scale import CLIP_SCALE, scale_of
from so_clip.errors import InputError


def merge(adapters: Sequence[SavedAdapter], weights: Sequence[float] | None = None) -> SavedAdapter:
    """Return the weighted sum of the changes that several adapters make to one base.

        W = W_base + sum_i weight_i · (W_i - W_base)

    Low-rank updates become changes of whole matrices. The result keeps class names and prompts only
    if all adapters have the same ones, and it has no temperature.

    Args:
        adapters: of the same base; all are changes of weights.
        weights: one number for each adapter; None: 1 / their number, the average.

    Raises:
        InputError: there is no adapter, their numbers differ, they have different bases, or one
            adds prompts, a head or other modules: these have no sum.

    Source: task arithmetic, arXiv 2212.04089; averages of weights, arXiv 2203.05482.
    """
    if not isinstance(adapters, Sequence) or not adapters:
        raise InputError("merge: there is no adapter. Give a list with at least one.")
    for adapter in adapters:
        check_saved(adapter)
    if weights is not None and not isinstance(weights, Iterable):
        raise InputError(f"weights={weights}: must be a list of numbers, one for each adapter.")
    weights = [1 / len(adapters)] * len(adapters) if weights is None else [*weights]
    if len(weights) != len(adapters):
        raise InputError(
            f"merge: {len(adapters)} adapters and {len(weights)} weights. Give one weight each."
        )
    weights = [number("weights", weight) for weight in weights]
    first = adapters[0].about
    for adapter in adapters:
        _check_mergeable(adapter, first.base)
    terms: dict[str, list[tuple[Change, float]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, change in _as_changes(adapter).items():
            terms.setdefault(name, []).append((change, weight))
    shapes = {name: {change.shape for change, _ in changes} for name, changes in terms.items()}
    for name, found in shapes.items():
        if len(found) > 1:
            raise InputError(f"merge: {name} has the shapes {sorted(found)}. One file is damaged.")
    changes = {name: combined(found) for name, found in terms.items()}
    return saved_adapter(_about_merged([adapter.about for adapter in adapters]), changes)


def scale(adapter: SavedAdapter, factor: float) -> SavedAdapter:
    """Return an adapter that changes the base `factor` times as much.

    0 is the base, 1 the adapter; numbers between them are WiSE-FT (arXiv 2109.01903).

    Raises:
        InputError: see `merge`.
    """
    scaled = merge([adapter], [factor])
    about = adapter.about.model_copy(
        update={"kind": "scale", "temperature": None, "calibrated_on": 0, "low_rank": ()}
    )
    return saved_adapter(_without_method(about), scaled.changes)


def diff(base: Any, adapted: Any, architecture: str = "") -> SavedAdapter:
    """Return the adapter that turns one set of weights into another, bit for bit.

    Args:
        base: a CLIP model of open_clip, a Classifier, its state dict, or a file of weights.
        adapted: the same; both have the same tensors.
        architecture: open_clip's name of the model. With it, files may have any layout that
            so_clip reads; without it, they have open_clip's.

    Raises:
        InputError: a file cannot be read, or the tensors differ in names, shapes or types.
    """
    loaded = _loaded(base, architecture)
    before, after = _state_of(loaded), _state_of(_loaded(adapted, architecture))
    for name in {*before} ^ {*after}:
        owner = "base" if name in before else "adapted"
        raise InputError(f"diff: only the {owner} weights have {name}. Give two of one model.")
    changes = {}
    for name, value in before.items():
        other = after[name]
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            raise InputError(
                f"diff: {name} is {list(value.shape)}, {value.dtype} in one and "
                f"{list(other.shape)}, {other.dtype} in the other. Give two of one model."
            )
        if value.is_floating_point():
            if value.dtype not in FLOATS:
                raise InputError(
                    f"diff: {name} is {value.dtype}. Convert both models to float32 first."
                )
            if not (torch.isfinite(other).all() and torch.isfinite(value).all()):
                raise InputError(f"diff: {name} has values that are not finite numbers.")
            change = change_between(value.cpu(), other.cpu())
            if change is not None:
                changes[name] = change
        elif not torch.equal(value.cpu(), other.cpu()):
            raise InputError(f"diff: {name} holds whole numbers that differ. These have no change.")
    base_record = Base(
        architecture=architecture,
        weights_sha256=sha256_of_weights(before),
        logit_scale=scale_of(before["logit_scale"]) if "logit_scale" in before else CLIP_SCALE,
        quick_gelu=_has_quick_gelu(loaded, architecture),
    )
    return saved_adapter(About(kind="diff", base=base_record), changes)


def _loaded(source: Any, architecture: str) -> Any:
    """Return an open_clip model or a state dict."""
    if isinstance(source, (str, Path)):
        if not architecture:
            return read_weights(Path(source)).state_dict
        source = load_backbone(architecture, checkpoint=source)
    if isinstance(source, Classifier):
        source = source.backbone
    return source.model if isinstance(source, Backbone) else source


def _has_quick_gelu(source: Any, architecture: str) -> bool:
    """Return whether a model computes QuickGELU. Tensors alone do not show it."""
    if isinstance(source, nn.Module):
        return any(isinstance(module, QuickGELU) for module in source.modules())
    return architecture.endswith("-quickgelu")


def _state_of(source: Any) -> dict[str, Tensor]:
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(
            f"diff: {type(source).__name__} holds no weights. Give a model, a state dict or a file."
        )
    return {name: value.detach() for name, value in state.items()}


def _check_mergeable(adapter: SavedAdapter, base: Base) -> None:
    other = adapter.about.base
    if other.weights_sha256 != base.weights_sha256:
        raise InputError(
            f"{adapter.place}: belongs to {other.shown}, the first adapter to {base.shown}. Only "
            "adapters of one base have a sum."
        )
    if not adapter.about.weights_only:
        added = min(adapter.added, default="modules")
        raise InputError(
            f"{adapter.place}: {adapter.about.method} adds {added}, which has no sum with others. "
            "Only changes of CLIP's own weights can be merged and scaled."
        )


def _as_changes(adapter: SavedAdapter) -> dict[str, Change]:
    """Return all changes of an adapter; a low-rank update becomes a dense change."""
    changes = dict(adapter.changes)
    for update in adapter.about.low_rank:
        dense = _dense(update, adapter)
        if update.tensor in changes:
            dense = combined([(changes[update.tensor], 1.0), (dense, 1.0)])
        changes[update.tensor] = dense
    return changes


def _dense(update: LowRank, adapter: SavedAdapter) -> Change:
    delta_OI = torch.zeros(update.shape)
    delta_OI[slice(*update.rows)] = adapter.low_rank_delta(update).float()
    none_X = torch.empty(0, dtype=torch.int64), torch.empty(0)
    return Change(update.shape, delta_OI.view(-1), None, *none_X)


def _about_merged(abouts: Sequence[About]) -> About:
    first = abouts[0]
    same = all(
        (about.class_names, about.templates, about.descriptions)
        == (first.class_names, first.templates, first.descriptions)
        for about in abouts
    )
    classes = (
        {name: getattr(first, name) for name in ("class_names", "templates", "descriptions")}
        if same
        else {}
    )
    merged = About(
        kind="merge",
        base=first.base,
        dataset="+".join(dict.fromkeys(about.dataset for about in abouts)),
        method="+".join(dict.fromkeys(about.method for about in abouts)),
        settings=first.settings,
        precision=first.precision,
        evaluation_precision=first.evaluation_precision,
        **classes,
    )
    return _without_method(merged)


def _without_method(about: About) -> About:
    """Return the metadata of an adapter that is plain changes, made by no adapter class."""
    settings = {**about.settings, "adapter": None}
    return about.model_copy(
        update={"settings": settings, "low_rank": (), "class_bound": False, "weights_only": True}
    )
