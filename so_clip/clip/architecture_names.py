"""The names of architectures. Needs no torch, so an unknown name is refused early."""

from importlib.util import find_spec
from pathlib import Path

from so_clip.errors import InputError, nearest

TINY = "tiny"


def check_architecture(name: str) -> None:
    """Raise InputError, with the nearest names, unless `name` is "tiny" or open_clip knows it."""
    known = _of_open_clip()
    if name != TINY and name not in known:
        raise InputError(
            f"backbone.architecture={name}: open_clip has no such model."
            f"{nearest(name, known)} open_clip.list_models() lists all {len(known)}."
        )


def _of_open_clip() -> list[str]:
    # Importing open_clip would import torch, so this looks at the files that list_models() reads.
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return [
        file.stem for folder in folders or () for file in Path(folder).glob("model_configs/*.json")
    ]
