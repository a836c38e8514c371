"""Choices of data without a composed configuration."""

from pathlib import Path
from typing import Any

from so_clip.data.choice import DataChoice


def data_choice(dataset: str, data_root: Path = Path("data"), **options: Any) -> DataChoice:
    """Return the defaults with other options; `shots` may be 0, as in a zero-shot run."""
    return DataChoice(dataset=dataset, data_root=data_root).model_copy(update=options)
