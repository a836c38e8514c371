"""so_clip: few-shot adaptation of CLIP, compared fairly.

`load`, `few_shot`, `adapt` and `load_adapted` do in Python what the program `python -m so_clip`
does (docs/start/python.md). `adapters` works with the files that runs leave.

`SO` is the optimizer. `sampled_gradients` computes only the gradients that its next step reads,
and `clip_grad_norm_` clips these.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from so_clip.version import __version__

if TYPE_CHECKING:
    from so_clip import adapters
    from so_clip.api.adapt import adapt, load_adapted
    from so_clip.api.clip import load
    from so_clip.api.few_shots import few_shot
    from so_clip.errors import InputError
    from so_clip.optim.gradients import clip_grad_norm_
    from so_clip.optim.sampled import sampled_gradients
    from so_clip.optim.so import SO

__all__ = [
    "SO",
    "InputError",
    "__version__",
    "adapt",
    "adapters",
    "clip_grad_norm_",
    "few_shot",
    "load",
    "load_adapted",
    "sampled_gradients",
]

# torch takes seconds to import; `python -m so_clip --help` must not wait for it.
_LAZY = {
    "SO": "optim.so",
    "InputError": "errors",
    "adapt": "api.adapt",
    "clip_grad_norm_": "optim.gradients",
    "few_shot": "api.few_shots",
    "load": "api.clip",
    "load_adapted": "api.adapt",
    "sampled_gradients": "optim.sampled",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "adapters":
        return import_module("so_clip.adapters")
    if name in _LAZY:
        return getattr(import_module(f"so_clip.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'so_clip' has no attribute {name!r}")
