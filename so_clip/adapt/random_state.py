"""The global random state, for code that can draw from nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lend(generator: torch.Generator) -> Iterator[None]:
    """Make `generator` the global one of its device for a while.

    The generator moves on by what is drawn, and the global state comes back as it was. For draws
    inside what torch's checkpoint runs twice: it repeats draws from the global state alone.
    """
    device = generator.device
    default = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        default = torch.cuda.default_generators[index]
    saved = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(saved)
