"""The digits in the package equal scikit-learn's, and their split is correct."""

import numpy as np
import pytest

from so_clip.system.paths import ASSETS_DIR, CARDS_DIR

PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    with np.load(ASSETS_DIR / "digits.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_images_and_labels_equal_those_of_scikit_learn(digits: dict[str, np.ndarray]) -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    assert digits["images_NHW"].dtype == np.uint8
    assert digits["images_NHW"].shape == (1797, 8, 8)
    # 16 steps of ink stretched to 0..255: 8-bit rounding loses nothing of the original.
    np.testing.assert_array_equal(np.rint(digits["images_NHW"] / (255 / 16)), original.images)
    np.testing.assert_array_equal(digits["labels_N"], original.target)


def test_split_is_disjoint_and_complete(digits: dict[str, np.ndarray]) -> None:
    together = np.concatenate([digits[part] for part in PARTS])
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))


@pytest.mark.parametrize(("part", "share"), [("train", 0.5), ("val", 0.2), ("test", 0.3)])
def test_each_part_holds_its_share_of_every_digit(
    digits: dict[str, np.ndarray], part: str, share: float
) -> None:
    in_all = np.bincount(digits["labels_N"], minlength=10)
    in_part = np.bincount(digits["labels_N"][digits[part]], minlength=10)
    assert np.abs(in_part - share * in_all).max() <= 1


def test_card_states_the_sizes_of_the_asset(digits: dict[str, np.ndarray]) -> None:
    yaml = pytest.importorskip("yaml")
    card = yaml.safe_load((CARDS_DIR / "digits.yaml").read_text(encoding="utf-8"))
    assert card["sizes"] == {"classes": 10, **{part: len(digits[part]) for part in PARTS}}
    assert len(card["class_names"]) == 10


def test_asset_is_small() -> None:
    assert (ASSETS_DIR / "digits.npz").stat().st_size < 100_000


@pytest.mark.slow
def test_script_writes_the_asset_again(digits: dict[str, np.ndarray]) -> None:
    pytest.importorskip("sklearn")
    from scripts.make_digits import digits_arrays

    for name, array in digits_arrays().items():
        np.testing.assert_array_equal(array, digits[name])
