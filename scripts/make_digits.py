"""Write so_clip/assets/digits.npz: scikit-learn's 1,797 handwritten digits and their fixed split.

The package reads this file, so only this script needs scikit-learn:

    python scripts/make_digits.py            # 50% train, 20% val, 30% test, as in CoOp's splits

The split is stratified by digit and drawn from one seeded generator, so the script always writes
the same arrays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

ASSET = Path(__file__).resolve().parents[1] / "so_clip" / "assets" / "digits.npz"
SEED = 20240
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2  # the rest is the test set
DARKEST = 16  # scikit-learn counts the ink of a 4x4 block: 0..16


def stratified_split(labels_N: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Divide the examples by class into sorted train, val and test indices."""
    generator = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for label in np.unique(labels_N):
        order = generator.permutation(np.flatnonzero(labels_N == label))
        first = round(len(order) * TRAIN_SHARE)
        second = first + round(len(order) * VAL_SHARE)
        for name, part in zip(parts, np.split(order, [first, second]), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)).astype(np.int16) for name, part in parts.items()}


def digits_arrays(seed: int = SEED) -> dict[str, np.ndarray]:
    """Return images_NHW (uint8, 0 paper to 255 ink), labels_N and the index arrays of the split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NHW = np.rint(digits.images * (255 / DARKEST)).astype(np.uint8)
    labels_N = digits.target.astype(np.uint8)
    return {"images_NHW": images_NHW, "labels_N": labels_N, **stratified_split(labels_N, seed)}


def main() -> None:
    """Write the asset and print its size and split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSET, help="where to write the .npz file")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the split")
    arguments = parser.parse_args()
    arrays = digits_arrays(arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays)  # type: ignore[arg-type]
    sizes = {name: len(arrays[name]) for name in ("train", "val", "test")}
    print(f"{arguments.out.name}: {arguments.out.stat().st_size} bytes, {sizes}")


if __name__ == "__main__":
    main()
