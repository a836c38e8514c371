"""All that a run takes from a dataset, found and checked before torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from so_clip.data.cards import DatasetCard, load_card
from so_clip.data.examples import Splits
from so_clip.data.fewshot import FewShot, draw_few_shot
from so_clip.data.images import ImageSource, open_images, require_images
from so_clip.data.splits import load_splits


@dataclass(frozen=True)
class Data:
    """A dataset as one run sees it: its card and lists, its images, and the few shots drawn."""

    card: DatasetCard
    splits: Splits
    images: ImageSource
    few_shot: FewShot | None


def gather(
    dataset: str,
    data_root: Path | None,
    split_file: Path | None,
    *,
    shots: int,
    seed: int,
    split_protocol: str,
) -> Data:
    """Read a dataset's lists, draw the few shots, and make sure that every image is there.

    Args:
        dataset: the name of a card.
        data_root: the folder of all datasets.
        split_file: in place of the one below `data_root`.
        shots: training images per class; 0 draws none.
        seed, split_protocol: see draw_few_shot.

    Raises:
        InputError: no such dataset, files missing or malformed; the message names them.
    """
    card = load_card(dataset)
    splits = load_splits(card, data_root, split_file)
    few_shot = draw_few_shot(splits, shots, seed, split_protocol) if shots else None
    images = open_images(card, data_root)
    require_images(images, [*(few_shot.train if few_shot else ()), *splits.test], card)
    return Data(card, splits, images, few_shot)
