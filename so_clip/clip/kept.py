"""Which tensors are kept for the backward pass anyway, so that keeping them costs nothing."""

from torch import Tensor


def mark_kept(x: Tensor) -> Tensor:
    """Say of a tensor that something else keeps it for the backward pass, or makes it again."""
    x.kept_anyway = True  # type: ignore[attr-defined]
    return x


def is_kept(x: Tensor) -> bool:
    """Return whether that was said of this very tensor."""
    return getattr(x, "kept_anyway", False)
