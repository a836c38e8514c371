"""The handwritten digits in the package: real images that need no data root."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from so_clip.system.paths import ASSETS_DIR

DIGITS_FILE = ASSETS_DIR / "digits.npz"


@dataclass(frozen=True)
class Digits:
    """All digits: `images_NHW` uint8, `labels_N`, and the indices of the train/val/test lists."""

    images_NHW: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.integer]
    splits: dict[str, list[int]]


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """Read the embedded digits, once per process."""
    with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
        return Digits(
            images_NHW=arrays["images_NHW"],
            labels_N=arrays["labels_N"],
            splits={split: arrays[split].tolist() for split in ("train", "val", "test")},
        )


def digit_path(index: int) -> str:
    """Return the path of digit number `index` in split lists."""
    return f"digit_{index:04d}.png"
