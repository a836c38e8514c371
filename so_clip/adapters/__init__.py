"""Adapters as small files: save what a run learned, and put it into any copy of its base.

>>> adapter = so_clip.adapters.load("adapter.safetensors")
>>> so_clip.adapters.apply(model, adapter)
>>> so_clip.adapters.remove(model)

docs/reference/adapter_file.md describes the file.
"""

from so_clip.adapters.apply import applied_to, apply, remove
from so_clip.adapters.arithmetic import diff, merge, scale
from so_clip.adapters.file import SavedAdapter, load, save
from so_clip.adapters.restore import Restored, open_saved, restore

__all__ = [
    "Restored",
    "SavedAdapter",
    "applied_to",
    "apply",
    "diff",
    "load",
    "merge",
    "open_saved",
    "remove",
    "restore",
    "save",
    "scale",
]
