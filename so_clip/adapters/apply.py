"""Put an adapter into a model in place, and take it out again bit for bit."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.adapters.about import LowRank, with_hash
from so_clip.adapters.attach import attach
from so_clip.adapters.change import Undo
from so_clip.adapters.file import SavedAdapter, check_saved
from so_clip.adapters.structure import Structure
from so_clip.clip.backbone import Backbone, sha256_of_weights
from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter

# Attributes of the open_clip model that remember what this module did to it.
_APPLIED, _BASE = "so_clip_applied", "so_clip_base"
# The attribute of a model inside torch.compile's, and inside that of several processes or GPUs.
_WRAPPED = ("_orig_mod", "module")
# Threads take turns: two adapters at once would mix in one model.
_LOCK = threading.RLock()


@dataclass(eq=False)
class _Applied:
    """An adapter in a model, and what takes it out."""

    adapter: SavedAdapter
    config_dir: Path | None
    opens: bool
    undo: list[tuple[str, Undo]] = field(default_factory=list)
    structure: Structure | None = None

    def take_out(self, plain: nn.Module) -> None:
        if self.structure is not None:
            self.structure.restore()
        # The tensors are looked up now, because the model may have moved to another device.
        tensors = plain.state_dict()
        for name, undo in reversed(self.undo):
            undo(tensors[name])


def apply(model: nn.Module, adapter: SavedAdapter, config_dir: Path | None = None) -> None:
    """Adapt a model in place. An adapter that is in the model already is removed first.

    A classifier of so_clip takes every adapter. An open_clip model takes adapters that are changes
    of weights: moved entries and low-rank updates, which are added to the weights.

    Args:
        model: a Classifier, a Backbone, or a CLIP of open_clip, in the precision of the file.
        adapter: as `load` returns it.
        config_dir: the user's own configuration folder, if the adapter's class is named there.

    Raises:
        InputError: the model is another base, does not have a tensor, or has other classes than the
            adapter's head. The model does not change: it keeps the adapter that is in it.

    Example:
        >>> model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-16", "openai")
        >>> apply(model, load("adapter.safetensors"))
        >>> remove(model)
    """
    with _LOCK:
        put_in(model, adapter, config_dir)
        _freeze(model)


def put_in(
    model: nn.Module,
    adapter: SavedAdapter,
    config_dir: Path | None = None,
    opens: bool = False,
) -> Adapter | None:
    """Do as `apply`, but leave the method's parameters open.

    Args:
        model, adapter, config_dir: see `apply`.
        opens: whether to call a method that adds no tensors too, so that it opens its parameters.

    Returns:
        The method's adapter object, if it was called.
    """
    check_saved(adapter)
    plain = _plain(model)
    with _LOCK:
        before: _Applied | None = vars(plain).get(_APPLIED)
        is_frozen = before is not None and not any(p.requires_grad for p in model.parameters())
        remove(model)
        try:
            return _put_in(model, plain, _Applied(adapter, config_dir, opens))
        except BaseException:
            if before is not None:
                _put_in(model, plain, _Applied(before.adapter, before.config_dir, before.opens))
                if is_frozen:
                    _freeze(model)
            raise


def _put_in(model: nn.Module, plain: nn.Module, applied: _Applied) -> Adapter | None:
    """Put an adapter into a model that has none. After an error, the model has not changed."""
    adapter, method = applied.adapter, None
    _check_base(plain, adapter, _description(model))
    tensors = plain.state_dict()
    check_tensors(tensors, adapter)
    if not isinstance(model, Classifier):
        _check_is_weights(adapter)
    try:
        for name, change in adapter.changes.items():
            applied.undo.append((name, change.undo_of(tensors[name])))
            if not change.write_into(tensors[name]):
                raise not_finite(adapter, name)
        if isinstance(model, Classifier):
            applied.structure = Structure(model)
            if adapter.added or applied.opens:
                method = attach(model, adapter, applied.config_dir)
        else:
            for update in adapter.about.low_rank:
                tensor = tensors[update.tensor]
                rows_N = tensor[slice(*update.rows)].reshape(-1).clone()
                applied.undo.append((update.tensor, Undo(rows_N, rows=update.rows)))
                _add_low_rank(tensor, update, adapter)
                if not torch.isfinite(tensor[slice(*update.rows)]).all():
                    raise not_finite(adapter, update.tensor)
    except BaseException:
        applied.take_out(plain)
        raise
    vars(plain)[_APPLIED] = applied
    _remember(plain, adapter.about.base.weights_sha256)
    return method


def not_finite(adapter: SavedAdapter, name: str) -> InputError:
    """Return the error about an adapter that makes a tensor infinite."""
    return InputError(
        f"{adapter.place}: is damaged: with it, {name} has values that are not finite numbers. "
        "Copy it again."
    )


def _freeze(model: nn.Module) -> None:
    """Freeze what the method in a classifier has opened."""
    if isinstance(model, Classifier):
        vars(_plain(model))[_APPLIED].structure.freeze()
        model.forget_classes()


def remove(model: nn.Module) -> None:
    """Take the adapter out of a model: its weights and modules are as before `apply`, bit for bit.

    Without an adapter, this does nothing. The model may have moved to another device or precision.
    What was trained after `apply` stays trained.
    """
    plain = _plain(model)
    with _LOCK:
        applied = vars(plain).pop(_APPLIED, None)
        if applied is None:
            return
        is_untouched = vars(plain)[_BASE][1] == _versions(plain)
        applied.take_out(plain)
        if isinstance(model, Classifier):
            model.forget_classes()
        if is_untouched:
            _remember(plain, applied.adapter.about.base.weights_sha256)


def applied_to(model: nn.Module) -> SavedAdapter | None:
    """Return the adapter in a model, or None."""
    applied = vars(_plain(model)).get(_APPLIED)
    return None if applied is None else applied.adapter


def _plain(model: Any) -> nn.Module:
    """Return the open_clip model inside a classifier or a backbone."""
    if isinstance(model, Classifier):
        model = model.backbone
    if isinstance(model, Backbone):
        model = model.model
    inner = next((name for name in _WRAPPED if name in getattr(model, "_modules", ())), None)
    if inner is not None and not hasattr(type(model), "encode_image"):
        raise InputError(
            f"{type(model).__name__}: is a wrapper around the model. Give the model in it: "
            f"model.{inner}."
        )
    if not (isinstance(model, nn.Module) and hasattr(model, "encode_image")):
        raise InputError(
            f"{type(model).__name__}: an adapter goes into a Classifier of so_clip or a CLIP model "
            "of open_clip. Give one of these."
        )
    return model


def _description(model: nn.Module) -> str:
    backbone = model.backbone if isinstance(model, Classifier) else model
    return backbone.description if isinstance(backbone, Backbone) else "this model"


def _check_base(plain: nn.Module, adapter: SavedAdapter, description: str) -> None:
    """Refuse other weights than the adapter's base. The hash of known weights is not computed."""
    for name, value in plain.state_dict().items():
        if value.is_meta or value.is_inference():
            kind = "without values (meta)" if value.is_meta else "made under inference_mode()"
            raise InputError(
                f"{type(plain).__name__}: its {name} is {kind} and cannot be changed. Load the "
                "model on a device, outside of torch.inference_mode()."
            )
    sha256, versions = vars(plain).get(_BASE, (None, None))
    if versions != _versions(plain):
        sha256 = sha256_of_weights(plain.state_dict())
        vars(plain)[_BASE] = sha256, _versions(plain)
    base = adapter.about.base
    if sha256 != base.weights_sha256:
        raise InputError(
            f"{adapter.place}: belongs to {base.shown}, and {with_hash(description, sha256)} has "
            "other weights. Load the adapter's base, in float32."
        )


def _remember(plain: nn.Module, sha256: str) -> None:
    """Keep the base's hash, so that the next adapter need not compute it."""
    vars(plain)[_BASE] = sha256, _versions(plain)


def _versions(plain: nn.Module) -> list[tuple[Any, ...]]:
    """Return what differs after a change in place, a new value, and a move to another device."""
    values = [*plain.parameters(), *plain.buffers()]
    return [(id(value), value._version, value.dtype, value.data_ptr()) for value in values]


def check_tensors(tensors: Mapping[str, Tensor], adapter: SavedAdapter) -> None:
    """Check every change against the model before the first one is made."""
    for name, change in adapter.changes.items():
        have = tensors.get(name)
        if have is None or (tuple(have.shape), have.dtype) != (change.shape, change.dtype):
            there = "none" if have is None else f"{list(have.shape)}, {have.dtype}"
            raise InputError(
                f"{adapter.place}: changes {name} {list(change.shape)}, {change.dtype}; the model "
                f"has {there}. It is damaged, or belongs to another architecture."
            )
    for update in adapter.about.low_rank:
        have = tensors.get(update.tensor)
        if have is None or tuple(have.shape) != update.shape or not _fits(update, adapter.added):
            raise InputError(
                f"{adapter.place}: its low-rank update does not fit {update.tensor} of the model. "
                "It is damaged, or belongs to another architecture."
            )


def _fits(update: LowRank, added: Mapping[str, Tensor]) -> bool:
    """Return whether the factors of an update have the shapes that its record says."""
    down_RI, up_OR, (first, last) = added[update.down], added[update.up], update.rows
    if (down_RI.dim(), up_OR.dim()) != (2, 2) or not 0 <= first < last <= update.shape[0]:
        return False
    rank = len(down_RI)
    diagonal = None if update.diagonal is None else added[update.diagonal]
    return (
        down_RI.shape[1] == update.shape[1]
        and up_OR.shape == (last - first, rank)
        and (diagonal is None or diagonal.numel() == rank)
    )


def _check_is_weights(adapter: SavedAdapter) -> None:
    if not adapter.about.weights_only:
        added = min(adapter.added, default="modules")
        raise InputError(
            f"{adapter.place}: {adapter.about.method} adds {added}, which a bare CLIP model has "
            "no place for. Give a Classifier of so_clip: so_clip.adapters.restore makes one."
        )


@torch.no_grad()
def _add_low_rank(tensor: Tensor, update: LowRank, adapter: SavedAdapter) -> None:
    """Add a low-rank update to rows of a weight, in float64."""
    rows = tensor[slice(*update.rows)]
    rows.copy_(rows.cpu().double() + adapter.low_rank_delta(update))
