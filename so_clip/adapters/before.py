"""Copies of the tensors that training may change, and what has changed since."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from so_clip.adapters.change import Change, change_between
from so_clip.adapters.changed import ChangedTensor, in_place
from so_clip.clip.engine.fixed_entries import fixed_entries
from so_clip.methods.model import Model

# The place of the open_clip model in a classifier's state dict.
_MODEL = "backbone.model."


class Before:
    """Copies of a model's trained tensors before training, in the host's memory.

    Args:
        model: with its parameters opened, before the adapter's `start`.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._opened = {name: _copy(value) for name, value in model.parameters.items()}
        by_id = {id(value): self._opened[name] for name, value in model.parameters.items()}
        state = _base_state(model)
        self._base = {
            name: by_id[id(value)]
            for name, value in state.items()
            if id(value) in by_id and f"{_MODEL}{name}" in model.base_names
        }
        assert model.adapter is not None
        for name, value in model.adapter.rewritten(model.classifier).items():
            self._base.setdefault(name, _copy(value))

    def started(self) -> None:
        """Copy the first values of opened tensors that the base does not have. Call after `start`.

        A tensor of the base keeps its copy from before `start`, so that a change in it counts.
        """
        of_base = {id(value) for value in self._base.values()}
        for name, value in self._model.parameters.items():
            if id(self._opened[name]) not in of_base:
                self._opened[name] = _copy(value)

    def counts(self) -> list[ChangedTensor]:
        """Return for each opened tensor its entries, how many have changed, and its place.

        Values of fixed entries count as changes of the weight that has them.
        """
        backbone = self._model.classifier.backbone
        weights = {
            entries.values_name: (entries.name, entries.weight.numel())
            for entries in fixed_entries(backbone.model)
        }
        counts = (
            (
                *weights.get(name, (name, value.numel())),
                int((value.detach().cpu() != self._opened[name]).sum()),
            )
            for name, value in self._model.parameters.items()
        )
        return in_place(backbone, counts)

    def changes(self, most_bytes: float = float("inf")) -> tuple[dict[str, Change], int]:
        """Return the changes of the base's tensors, and their bytes in a file.

        Above `most_bytes` the work ends early: the changes are not complete, and the bytes are a
        lower bound.
        """
        changes, total = {}, 0
        for name, value in self._values():
            change = change_between(self._base[name], value.detach().cpu())
            if change is not None:
                changes[name], total = change, total + change.nbytes
            if total > most_bytes:
                break
        return changes, total

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        state = _base_state(self._model)
        for name in self._base:
            yield name, state[name]


def added_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors that the adapter has added to the classifier, by their state names."""
    state = model.classifier.state_dict()
    return {name: value for name, value in state.items() if name not in model.base_names}


def _base_state(model: Model) -> dict[str, Tensor]:
    """Return the state dict of the open_clip model; its values are the parameters themselves."""
    state: dict[str, Tensor] = model.classifier.backbone.model.state_dict(keep_vars=True)
    return state


def _copy(value: nn.Parameter | Tensor) -> Tensor:
    # In host memory, so that the copy does not count in the device's peak.
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
