"""so_clip: few-shot adaptation of CLIP, compared fairly."""

from typing import TYPE_CHECKING, Any

from so_clip.version import __version__

if TYPE_CHECKING:
    from so_clip.optim.so import SO

__all__ = ["SO", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `python -m so_clip --help` must not wait for it.
    if name == "SO":
        from so_clip.optim.so import SO

        return SO
    raise AttributeError(f"module 'so_clip' has no attribute {name!r}")
