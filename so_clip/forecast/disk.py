"""What a run leaves on disk, and what it decodes into memory, from counts alone."""

from collections.abc import Sequence

from torch import nn

from so_clip.clip.backbone import EMBEDDED
from so_clip.clip.hub import cached_pretrained
from so_clip.config.settings import BackboneChoice, Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.data.fewshot import MAX_VAL_SHOTS
from so_clip.forecast.test_sets import Tested

# Rows of a run's files, bytes: paths of 24 letters, and float32 figures in all their digits.
_PREDICTION_ROW, _CLASS_ROW, _HISTORY_ROW, _FEW_SHOT_ROW = 80, 60, 48, 64
# config.yaml, metrics.json, provenance.json and summary.txt together.
_SMALL_FILES = 8_000
_FEATURES_HEADER = 300
# A photograph's, as ImageNet's are on average.
PIXELS = 500 * 400


def disk_figures(
    settings: Settings,
    card: DatasetCard,
    tested: Sequence[Tested],
    model: nn.Module,
    dimensions: int,
) -> dict[str, int]:
    """Return bytes by what takes them; features, of so many dimensions, where the run keeps some.

    Published weights are counted in float32, as the hub has nearly all, unless they are there.
    """
    train_images = settings.data.shots * card.sizes["classes"]
    val_images = min(settings.data.shots, MAX_VAL_SHOTS) * card.sizes["classes"]
    pixels = card.image_pixels or PIXELS
    rows = settings.schedule.max_steps * _HISTORY_ROW
    rows += (train_images + val_images) * _FEW_SHOT_ROW
    test_images = sum(each.images for each in tested)
    rows += test_images * _PREDICTION_ROW
    rows += sum(each.classes for each in tested) * _CLASS_ROW
    features = 4 * dimensions * test_images + len(tested) * _FEATURES_HEADER
    return {
        "weights_download_bytes": _download(settings.backbone, model),
        "checkpoint_bytes": 0,
        "features_bytes": features if settings.evaluation.cache_dir else 0,
        "run_folder_bytes": rows + _SMALL_FILES,
        "few_shot_images_bytes": 3 * pixels * train_images,
        "image_pixels": pixels,
    }


def _download(backbone: BackboneChoice, model: nn.Module) -> int:
    architecture, pretrained = backbone.architecture, backbone.pretrained
    if backbone.checkpoint is not None or pretrained in (None, EMBEDDED):
        return 0
    if cached_pretrained(architecture, pretrained) is not None:
        return 0
    return 4 * sum(parameter.numel() for parameter in model.parameters())
