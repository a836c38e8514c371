"""Dropout in adapters: active where gradients are recorded, drawn from a generator of their own."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.adapt.random_state import lend


def dropped(x: Tensor, probability: float) -> Tensor:
    """Return x with values dropped and the rest scaled, or x itself where nothing is trained."""
    if not probability or not torch.is_grad_enabled():
        return x
    # On the CPU, F.dropout's mask would be kept as floats, not as bytes.
    kept, _ = torch.native_dropout(x, probability, True)
    return kept


class Dropout(nn.Module):
    """`dropped` in training mode; `eval()` ends it.

    Args:
        probability: with which a value is dropped.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Return what is left of x, scaled."""
        return dropped(x, self.probability) if self.training else x


class Draws:
    """Lets all dropout in a classifier draw from one generator.

    Not handed to the layers: what checkpointing runs a second time would draw other numbers.

    Args:
        seed: an adapter's; parameters drawn with the same seed share no numbers with these.
        device: where the classifier is.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        # No tensor makes the second seed: it may be a fake one.
        own = random.Random(seed).getrandbits(62)
        place = device if device.type == "cuda" else "cpu"
        self.generator = torch.Generator(place).manual_seed(own)
        self._lent: Any = None

    def serve(self, classifier: nn.Module) -> None:
        """Lend the generator whenever the classifier runs."""
        classifier.register_forward_pre_hook(self._before)
        classifier.register_forward_hook(self._after, always_call=True)

    def _before(self, *_: Any) -> None:
        self._lent = lend(self.generator)
        self._lent.__enter__()

    def _after(self, *_: Any) -> None:
        self._lent.__exit__(None, None, None)
