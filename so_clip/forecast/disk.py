"""The bytes that a run leaves on disk or decodes into memory, from counts of rows and images."""

from collections.abc import Sequence

from torch import Tensor, nn

from so_clip.adapters.of_run import most_bytes
from so_clip.clip.engine.fixed_entries import fixed_entries
from so_clip.clip.load import EMBEDDED
from so_clip.clip.loading.architecture_names import is_place
from so_clip.clip.loading.hub import cached_pretrained
from so_clip.clip.loading.sources import cached_weights
from so_clip.config.settings import BackboneChoice, Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.data.fewshot import MAX_VAL_SHOTS
from so_clip.forecast.test_sets import TestSetSize
from so_clip.methods.model import Model
from so_clip.optim.support import entry_count
from so_clip.results.logits_file import logits_bytes, logits_kept

# Bytes per row of a run's CSV files, for paths of 24 letters and float32 values with all digits.
_PREDICTION_ROW, _CLASS_ROW, _HISTORY_ROW, _FEW_SHOT_ROW = 80, 60, 48, 64
# Bytes of config.yaml, metrics.json, provenance.json and summary.txt together.
_SMALL_FILES = 8_000
_FEATURES_HEADER = 300
# Metadata of an adapter file, and names and shapes of its tensors.
_ADAPTER_HEADER = 20_000
# Name, shape, type and place of a tensor in a file, and its record in the metadata.
_TENSOR_HEADER = 300
# A place of a moved entry, unless entries are dense.
_GAP_BYTES = 2
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


def adapter_bytes(settings: Settings, model: Model) -> int:
    """Return the bytes of a run's adapter file at most, and 0 if the run writes none.

    A moved entry takes the bytes of its value and one or two for its place; see
    docs/reference/adapter_file.md.
    """
    state = model.classifier.state_dict(keep_vars=True)
    added = [value for name, value in state.items() if name not in model.base_names]
    of_base = {id(value) for name, value in state.items() if name in model.base_names}
    in_state = {id(value) for value in state.values()}
    whole = _rewritten(model)
    total = _ADAPTER_HEADER + sum(value.nbytes for value in (*whole, *added))
    total += _TENSOR_HEADER * len([*whole, *added, *model.parameters])
    merged = {id(value) for value in whole}
    for value in model.parameters.values():
        if id(value) in merged:
            continue
        if id(value) in of_base:
            total += _change_bytes(settings, value)
        elif id(value) not in in_state:  # values of fixed entries: the file has their weights
            total += value.numel() * (value.itemsize + _GAP_BYTES)
    return total if total <= most_bytes(settings.placement.save) else 0


def _rewritten(model: Model) -> list[Tensor]:
    """Return the tensors that the method rewrites itself: all of their entries can move.

    Weights with fixed entries are left out: only those entries move.
    """
    if model.adapter is None:
        return []
    backbone = model.classifier.backbone.model
    fixed = {id(entries.weight) for entries in fixed_entries(backbone)}
    state = backbone.state_dict(keep_vars=True)
    rewritten = model.adapter.rewritten(model.classifier)
    return [value for name, value in rewritten.items() if id(state[name]) not in fixed]


def _change_bytes(settings: Settings, value: Tensor) -> int:
    optimizer = settings.method.optimizer
    options = optimizer.options if optimizer else {}
    density_ratio, selections = options.get("density_ratio"), ("gradient", "moment")
    if density_ratio is None or any(options[f"{name}_selection"] == "dense" for name in selections):
        return value.nbytes
    steps, interval = settings.schedule.max_steps, options["T"]
    draws = 1 if interval == 0 else -(-steps // interval)
    least = options.get("least_entries", 1)
    entries = draws * entry_count(value.numel(), density_ratio, least)
    entries *= 2 if options["order"] == "update_first" else 1
    gap_bytes = 1 if entries > value.numel() / 50 else _GAP_BYTES
    return min(value.nbytes, entries * (value.itemsize + gap_bytes))


def _download_bytes(backbone: BackboneChoice, model: nn.Module) -> int:
    architecture, pretrained = backbone.architecture, backbone.pretrained
    if backbone.checkpoint is not None or pretrained == EMBEDDED:
        return 0
    if is_place(architecture):
        cached = cached_weights(architecture)
    elif pretrained is None:
        return 0
    else:
        cached = cached_pretrained(architecture, pretrained)
    if cached is not None:
        return 0
    return 4 * sum(parameter.numel() for parameter in model.parameters())
