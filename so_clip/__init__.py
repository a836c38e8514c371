"""so_clip: few-shot adaptation of CLIP, compared fairly.

`SO` is the optimizer. `sampled_gradients` computes only the gradients that its next step reads,
and `clip_grad_norm_` clips these. The program is `python -m so_clip`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from so_clip.version import __version__

if TYPE_CHECKING:
    from so_clip.optim.gradients import clip_grad_norm_
    from so_clip.optim.sampled import sampled_gradients
    from so_clip.optim.so import SO

__all__ = ["SO", "__version__", "clip_grad_norm_", "sampled_gradients"]

# torch takes seconds to import; `python -m so_clip --help` must not wait for it.
_LAZY = {"SO": "so", "clip_grad_norm_": "gradients", "sampled_gradients": "sampled"}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"so_clip.optim.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'so_clip' has no attribute {name!r}")
