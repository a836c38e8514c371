"""Random draws of adapters: dropout, and first values from a generator of their own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.engine.random_recompute import dropout


@contextmanager
def use_globally(generator: torch.Generator) -> Iterator[None]:
    """Make `generator` the global generator of its device inside the context.

    The draws advance `generator`. The global state is restored at the end. Some code can draw only
    from the global state: peft's first values, and dropout inside a part that torch's checkpoint
    runs twice (torch repeats draws from the global state only).
    """
    device = generator.device
    if device.type == "cuda":
        with _shared_on_cuda(generator):
            yield
        return
    default = torch.default_generator
    saved = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(saved)


@contextmanager
def _shared_on_cuda(generator: torch.Generator) -> Iterator[None]:
    """Let the default CUDA generator share the state of `generator`; the host makes no copy.

    Inside a CUDA graph no state can be copied.
    """
    index = generator.device.index
    default = torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
    saved = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(saved)


class Dropout(nn.Module):
    """Drops values in training mode and where gradients are recorded; scales the rest.

    Args:
        probability: of dropping a value.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout in training mode with gradients; otherwise return x unchanged."""
        if not self.training or not self.probability or not torch.is_grad_enabled():
            return x
        return dropout(x, self.probability)


class DropoutDraws:
    """One generator from which all dropout in a classifier draws.

    The layers do not get the generator itself: torch's checkpoint would then draw other numbers
    when it runs a layer for the second time.

    Args:
        seed: of the adapter. Parameters drawn with the same seed share no numbers with dropout.
        device: of the classifier.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        # Not drawn by torch: in a forecast a drawn tensor would be a fake one.
        dropout_seed = random.Random(seed).getrandbits(62)
        place = device if device.type == "cuda" else "cpu"
        self.generator = torch.Generator(place).manual_seed(dropout_seed)
        self._context: Any = None

    def attach(self, classifier: nn.Module) -> None:
        """Use the generator whenever the classifier runs."""
        classifier.register_forward_pre_hook(self._enter)
        classifier.register_forward_hook(self._exit, always_call=True)

    def _enter(self, *_: Any) -> None:
        self._context = use_globally(self.generator)
        self._context.__enter__()

    def _exit(self, *_: Any) -> None:
        self._context.__exit__(None, None, None)
