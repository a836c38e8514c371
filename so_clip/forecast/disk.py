"""The bytes that a run leaves on disk or decodes into memory, from counts of rows and images."""

from collections.abc import Sequence

from torch import nn

from so_clip.clip.backbone import EMBEDDED
from so_clip.clip.hub import cached_pretrained
from so_clip.config.settings import BackboneChoice, Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.data.fewshot import MAX_VAL_SHOTS
from so_clip.forecast.test_sets import TestSetSize
from so_clip.results.logits_file import logits_bytes, logits_kept

# Bytes per row of a run's CSV files, for paths of 24 letters and float32 values with all digits.
_PREDICTION_ROW, _CLASS_ROW, _HISTORY_ROW, _FEW_SHOT_ROW = 80, 60, 48, 64
# Bytes of config.yaml, metrics.json, provenance.json and summary.txt together.
_SMALL_FILES = 8_000
_FEATURES_HEADER = 300
# Pixels of a photograph: the average of ImageNet.
PIXELS = 500 * 400


def disk_bytes(
    settings: Settings,
    card: DatasetCard,
    test_sets: Sequence[TestSetSize],
    model: nn.Module,
    dimensions: int,
) -> dict[str, int]:
    """Return the bytes by kind of file, and the pixels of one image.

    Weights that must be downloaded count as float32, the type of nearly all weights on the hub.

    Args:
        settings: of the run.
        card: of its dataset.
        test_sets: of the run.
        model: the CLIP model.
        dimensions: of an image feature; features count if the run has a cache for them.
    """
    train_images = settings.data.shots * card.sizes["classes"]
    val_images = min(settings.data.shots, MAX_VAL_SHOTS) * card.sizes["classes"]
    pixels = card.image_pixels or PIXELS
    rows = settings.schedule.max_steps * _HISTORY_ROW
    rows += (train_images + val_images) * _FEW_SHOT_ROW
    test_images = sum(test_set.images for test_set in test_sets)
    rows += test_images * _PREDICTION_ROW
    rows += sum(test_set.classes for test_set in test_sets) * _CLASS_ROW
    for number, test_set in enumerate(test_sets):
        validation_images = 0 if number else val_images
        keeps = logits_kept(
            settings.evaluation.keep_logits,
            test_set.images,
            validation_images,
            test_set.classes,
            settings.adapts,
        )
        if models := sum(keeps):
            rows += logits_bytes(models, test_set.images, validation_images, test_set.classes)
    features = 4 * dimensions * test_images + len(test_sets) * _FEATURES_HEADER
    return {
        "weights_download_bytes": _download_bytes(settings.backbone, model),
        "checkpoint_bytes": 0,
        "features_bytes": features if settings.evaluation.cache_dir else 0,
        "run_folder_bytes": rows + _SMALL_FILES,
        "few_shot_images_bytes": 3 * pixels * train_images,
        "image_pixels": pixels,
    }


def _download_bytes(backbone: BackboneChoice, model: nn.Module) -> int:
    architecture, pretrained = backbone.architecture, backbone.pretrained
    if backbone.checkpoint is not None or pretrained in (None, EMBEDDED):
        return 0
    if cached_pretrained(architecture, pretrained) is not None:
        return 0
    return 4 * sum(parameter.numel() for parameter in model.parameters())
