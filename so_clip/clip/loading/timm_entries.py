"""Image models of timm: their sizes and published weights. The module needs no torch until a call.

timm names a model, such as vit_small_patch16_224, and by a tag its published weights, such as
dino.
"""

from typing import Any

from so_clip.clip.loading.architecture_names import check_architecture, timm_name
from so_clip.errors import InputError

_WEIGHTS = "model.safetensors"  # timm's name in its repositories of the hub
# timm's words for what open_clip calls resize_mode.
_RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


def timm_config(name: str) -> dict[str, Any]:
    """Return the sizes of `timm:NAME[@PIXELS]` in the form of open_clip's model_cfg.

    Raises:
        InputError: timm has no such model, or it takes other images than square RGB ones.
    """
    check_architecture(name)
    model, pixels = timm_name(name)
    channels, height, width = usual_entry(model).input_size
    if channels != 3 or (pixels is None and height != width):
        raise InputError(
            f"backbone.architecture={name}: the model takes {channels} channels of "
            f"{height}x{width} pixels; only square RGB images are supported."
        )
    return {"vision_cfg": {"timm_model_name": model, "image_size": pixels or height}}


def timm_tags(name: str) -> list[str]:
    """Return timm's tags of the published weights of `timm:NAME[@PIXELS]`."""
    from timm.models import get_arch_pretrained_cfgs

    model = timm_name(name).model
    entries = get_arch_pretrained_cfgs(model)
    return [known.partition(".")[2] for known, entry in entries.items() if entry.hf_hub_id]


def timm_entry(name: str, tag: str) -> dict[str, Any]:
    """Return published weights in the form of open_clip's entries: location and preprocessing.

    Args:
        name: of the architecture.
        tag: one of `timm_tags`.

    Raises:
        InputError: the model's images are prepared in a way that is not supported.
    """
    from timm.models import get_arch_pretrained_cfgs

    model = timm_name(name).model
    entry = get_arch_pretrained_cfgs(model)[f"{model}.{tag}"]
    return {"hf_hub": f"{entry.hf_hub_id}/{_WEIGHTS}", **_pixels(entry)}


def usual_entry(model: str) -> Any:
    """Return timm's first entry of a model, for its size."""
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(model)


def _pixels(entry: Any) -> dict[str, Any]:
    """Return timm's data configuration in the words of open_clip's preprocess_cfg."""
    from timm.data.config import resolve_data_config

    values = resolve_data_config(pretrained_cfg=entry.to_dict())
    return {
        "resize_mode": _RESIZE_MODES[values["crop_mode"]],
        "interpolation": values["interpolation"],
        "mean": values["mean"],
        "std": values["std"],
        "crop_share": values["crop_pct"],
    }
