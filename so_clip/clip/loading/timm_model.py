"""Build an image model of timm with random weights."""

from collections.abc import Mapping
from typing import Any

from so_clip.clip.image_only import ImageOnly
from so_clip.clip.loading.timm_entries import usual_entry
from so_clip.errors import InputError


def build_image_model(config: Mapping[str, Any]) -> ImageOnly:
    """Build timm's model with random weights, without its classifier.

    Args:
        config: see timm_config.

    Raises:
        InputError: the model cannot be built, or not for images of this size.
    """
    import timm

    name, side = (config["vision_cfg"][key] for key in ("timm_model_name", "image_size"))
    # A model that takes images of any size has no option for it.
    size = {"img_size": side} if usual_entry(name).fixed_input_size else {}
    try:
        trunk = timm.create_model(name, pretrained=False, num_classes=0, **size)
    except Exception as error:  # sizes that do not fit raise almost any exception
        text = " ".join(str(error).split())[:300].rstrip(" .")
        raise InputError(
            f"timm:{name} cannot be built for images of {side} pixels: {type(error).__name__}: "
            f"{text}. Choose another size with timm:NAME@PIXELS, or another model such as "
            "backbone=dino_s16."
        ) from error
    patch = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if size and isinstance(patch, tuple) and any(side % step for step in patch):
        raise InputError(
            f"timm:{name}@{side}: its patches of {patch[0]} pixels do not fill {side} pixels. "
            f"Choose a multiple of {patch[0]}."
        )
    return ImageOnly(trunk, side)
