"""How many of the trained matrices have sampled gradients, for the record of a run."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from so_clip.optim.gradients import unwrapped

_WITHOUT = "the optimizer, or its option sampled_gradients, takes whole gradients"


def sampled_record(optimizer: Any, parameters: Iterable[Tensor]) -> dict[str, int | str | None]:
    """Return the counts of trained and of sampled matrices, and why the others are whole.

    Args:
        optimizer: of the run; None if nothing is trained.
        parameters: the trained tensors. Kernels of convolutions are matrices, vectors are not.

    Returns:
        `trained_matrices`, `sampled_matrices`, and `whole_gradients`: a text such as
        "4: a parameter of MultiheadAttention", None if there are none.
    """
    matrices = [value for value in parameters if value.ndim > 1 and optimizer is not None]
    handle = getattr(unwrapped(optimizer), "sampled_gradients", None)
    reasons = [_WITHOUT if handle is None else handle.reason_of_whole(value) for value in matrices]
    counts = Counter(reason for reason in reasons if reason is not None)
    return {
        "trained_matrices": len(matrices),
        "sampled_matrices": reasons.count(None),
        "whole_gradients": "; ".join(f"{n}: {reason}" for reason, n in counts.items()) or None,
    }
