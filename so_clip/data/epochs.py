"""The random order of each epoch, and a place in it that a checkpoint stores."""

from typing import Any

import torch
from torch import Tensor


class Epochs:
    """Draws the order of each epoch, and knows how many of its batches were taken.

    Args:
        batch_size: examples per batch; the last batch of an epoch may be smaller.
        generator: on the CPU; it alone decides the order.
        drop_last: leave out the last batch of an epoch if it is smaller and not the only one.
    """

    def __init__(self, batch_size: int, generator: torch.Generator, drop_last: bool) -> None:
        self.batch_size, self.generator, self.drop_last = batch_size, generator, drop_last
        # The position in the epoch: the generator's state at its start, the batches taken so far,
        # and the batches to skip because they were taken before a state was loaded.
        self._epoch_state, self._taken, self._to_skip = generator.get_state(), 0, 0

    def _begin(self) -> int:
        """Begin an epoch; return the number of its batches that were taken already."""
        to_skip, self._to_skip = self._to_skip, 0
        self._epoch_state, self._taken = self.generator.get_state(), to_skip
        return to_skip

    def _order_of(self, count: int, repeats: int = 1) -> Tensor:
        """Return the indices of an epoch: each of `count` examples comes `repeats` times."""
        order_N = torch.randperm(repeats * count, generator=self.generator) % count
        incomplete = len(order_N) % self.batch_size
        if self.drop_last and incomplete < len(order_N):
            return order_N[: len(order_N) - incomplete]
        return order_N

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, after the last batch that was yielded."""
        return {"generator": self._epoch_state, "taken": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position with the next call of `epoch`."""
        self.generator.set_state(state_dict["generator"])
        self._epoch_state, self._taken = state_dict["generator"], state_dict["taken"]
        self._to_skip = state_dict["taken"]
