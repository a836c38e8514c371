"""Adapter files: safetensors with the changed entries, the added tensors, and what they belong to.

docs/reference/adapter_file.md describes the format for readers in other programs.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from so_clip.adapters.about import (
    CONTENT_SHA256,
    KEY,
    About,
    LowRank,
    Shape,
    about_from,
    content_sha256,
)
from so_clip.adapters.change import Change, from_gaps, to_gaps
from so_clip.checks import path as checked_path
from so_clip.clip.backbone import sha256_of_weights
from so_clip.errors import InputError, reason_of
from so_clip.results.run_files import ADAPTER_FILE
from so_clip.system import atomic
from so_clip.system.safe_open import open_plain

# Prefixes of tensor names in a file.
_PARTS = ("delta:", "gaps:", "exact:", "exact_gaps:", "added:")
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32)
# The types that tensors of models can have. torch cannot compare some of its other types.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_KINDS = (*FLOATS, *_UNSIGNED, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass(frozen=True, eq=False, repr=False)
class SavedAdapter:
    """An adapter in memory, on the CPU.

    Attributes:
        about: the metadata.
        changes: of the base's tensors, by their names in open_clip's state dict.
        added: tensors that the base does not have, by their names in the classifier's state dict.
        place: the file that it came from, for messages.
    """

    about: About
    changes: Mapping[str, Change] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    place: str = "the adapter"

    def __repr__(self) -> str:
        of = f"{self.about.method or self.about.kind} on {self.about.dataset or 'no dataset'}"
        return f"<SavedAdapter {of}, {self.nbytes / 2**20:.1f} MiB, from {self.place}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file."""
        changed = sum(change.nbytes for change in self.changes.values())
        return changed + sum(value.nbytes for value in self.added.values())

    def low_rank_delta(self, update: LowRank) -> Tensor:
        """Return scale · up @ diag(diagonal) @ down of an update's rows, delta_OI in float64."""
        down_RI, up_OR = (self.added[name].double() for name in (update.down, update.up))
        if update.diagonal is not None:
            up_OR = up_OR * self.added[update.diagonal].double().view(1, -1)
        return update.scale * (up_OR @ down_RI)


def saved_adapter(
    about: About, changes: Mapping[str, Change], added: Mapping[str, Tensor] | None = None
) -> SavedAdapter:
    """Return an adapter whose metadata name its tensors."""
    shapes = {
        name: Shape(shape=change.shape, dtype=str(change.dtype).removeprefix("torch."))
        for name, change in changes.items()
    }
    own = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in (added or {}).items()
    }
    about = about.model_copy(update={"shapes": shapes, "added": tuple(own)})
    return SavedAdapter(about, dict(changes), own)


def save(adapter: SavedAdapter, path: Path | str) -> None:
    """Write an adapter to a file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    check_saved(adapter)
    path = checked_path("path", path)
    tensors = {}
    for name, change in adapter.changes.items():
        tensors[f"delta:{name}"] = change.delta.contiguous()
        if change.index_M is not None:
            tensors[f"gaps:{name}"] = to_gaps(change.index_M)
        if len(change.exact_X):
            tensors[f"exact:{name}"] = change.exact_X.contiguous()
            tensors[f"exact_gaps:{name}"] = to_gaps(change.exact_index_X)
    tensors |= {f"added:{name}": value.contiguous() for name, value in adapter.added.items()}
    metadata = adapter.about.to_metadata(sha256_of_weights(tensors))
    atomic.write_bytes(path, to_bytes(tensors, metadata))


def check_saved(adapter: Any) -> None:
    """Raise InputError for an object that is no adapter."""
    if not isinstance(adapter, SavedAdapter):
        raise InputError(f"adapter={adapter!s:.200}: is no adapter. Give adapters.load(FILE).")


def load(path: Path | str) -> SavedAdapter:
    """Read an adapter file. Nothing in the file is run, and every tensor is checked.

    Raises:
        InputError: the file does not exist, is damaged, or is no adapter; the message says which.
    """
    path = checked_path("path", path)
    if os.path.isdir(path):  # noqa: PTH112 - Path's raises an error below a locked folder
        raise InputError(
            f"{path}: is a folder. Give an adapter file, such as {path / ADAPTER_FILE}."
        )
    try:
        os.close(open_plain(path))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            about = about_from(metadata, str(path))
            # Copies: the file can be replaced while the adapter is in memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{path}: cannot be read: {reason_of(error)}.") from error
        raise InputError(
            f"{path}: is damaged, cut short, or no safetensors file ({reason_of(error)}). Copy "
            "it again, or repeat the run with force=true. Pickles and other formats are not read."
        ) from error
    adapter = _Reader(about, tensors, str(path)).adapter()
    # Last, so that a message names the damage if it can. Files of other programs may lack it.
    values = json.loads(metadata[KEY])
    sha256 = values.get(CONTENT_SHA256)
    if sha256 is not None and sha256 != content_sha256(values, sha256_of_weights(tensors)):
        raise InputError(
            f"{path}: is damaged: its content is not the one that was written (SHA-256). Copy it "
            "again."
        )
    return adapter


class _Reader:
    """Checks the tensors of a file while it puts them together."""

    def __init__(self, about: About, tensors: dict[str, Tensor], place: str) -> None:
        self.about, self.tensors, self.place = about, tensors, place

    def adapter(self) -> SavedAdapter:
        """Return the adapter.

        Raises:
            InputError: a tensor is unknown, missing, of a wrong kind or not finite.
        """
        for key, value in self.tensors.items():
            if not key.startswith(_PARTS):
                raise self._damaged(f"it holds {key[:80]!r}, which no adapter has")
            if value.dtype not in _KINDS:
                raise self._damaged(f"{key} has the type {value.dtype}")
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise self._damaged(f"{key} holds values that are not finite numbers")
        changes = {name: self._change(name) for name in self.about.shapes}
        added = dict(self._named("added:"))
        for name in {*dict(self._named("delta:")), *dict(self._named("gaps:"))} - {*changes}:
            raise self._damaged(f"its header has no shape of {name}")
        for name in {*self.about.added} ^ {*added}:
            verb = "holds" if name in added else "lacks"
            raise self._damaged(f"it {verb} added:{name}, against its header")
        for update in self.about.low_rank:
            for name in filter(None, (update.down, update.up, update.diagonal)):
                if name not in added:
                    raise self._damaged(f"an update of {update.tensor} needs {name}")
        return SavedAdapter(self.about, changes, added, self.place)

    def _change(self, name: str) -> Change:
        shape, dtype = self.about.shapes[name].shape, self._dtype(name)
        if any(size < 0 for size in shape):
            raise self._damaged(f"the shape of {name} is {list(shape)}")
        numel = 1
        for size in shape:
            numel *= size
        delta = self.tensors.get(f"delta:{name}")
        wide = torch.promote_types(dtype, torch.float32)
        if delta is None or delta.dim() != 1 or delta.dtype != wide:
            raise self._damaged(f"delta:{name} is missing, or is not a list of {wide}")
        index_M = self._index(f"gaps:{name}", numel, len(delta))
        if index_M is None and len(delta) != numel:
            raise self._damaged(f"delta:{name} has {len(delta)} values in place of {numel}")
        exact_X = self.tensors.get(f"exact:{name}", torch.empty(0, dtype=dtype))
        if exact_X.dim() != 1 or exact_X.dtype != dtype:
            raise self._damaged(f"exact:{name} is not a list of {dtype}")
        exact_index_X = self._index(f"exact_gaps:{name}", numel, len(exact_X))
        if exact_index_X is None:
            if len(exact_X):
                raise self._damaged(f"exact_gaps:{name} is missing")
            exact_index_X = torch.empty(0, dtype=torch.int64)
        return Change(shape, delta, index_M, exact_index_X, exact_X)

    def _dtype(self, name: str) -> torch.dtype:
        dtype = getattr(torch, self.about.shapes[name].dtype, None)
        if dtype not in FLOATS:
            raise self._damaged(f"the type of {name} is {self.about.shapes[name].dtype[:40]!r}")
        return dtype

    def _index(self, key: str, numel: int, count: int) -> Tensor | None:
        gaps_M = self.tensors.get(key)
        if gaps_M is None:
            return None
        if gaps_M.dim() != 1 or gaps_M.dtype not in _UNSIGNED or len(gaps_M) != count:
            raise self._damaged(f"{key} is not a list of {count} indices")
        index_M = from_gaps(gaps_M)
        if count and (index_M.diff() == 0).any():
            raise self._damaged(f"{key} names an entry twice")
        if count and int(index_M[-1]) >= numel:
            raise self._damaged(f"{key} names entry {int(index_M[-1])} of a tensor of {numel}")
        return index_M

    def _named(self, part: str) -> Iterable[tuple[str, Tensor]]:
        for key, value in self.tensors.items():
            if key.startswith(part):
                yield key.removeprefix(part), value

    def _damaged(self, problem: str) -> InputError:
        return InputError(f"{self.place}: is damaged: {problem}. Copy it again.")
