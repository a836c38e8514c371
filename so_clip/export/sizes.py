"""Which architectures each library can hold, read from open_clip's configuration of a model."""

from collections.abc import Mapping
from typing import Any

from so_clip.errors import InputError

OPEN_CLIP, OPENAI, TRANSFORMERS, PEFT = "open_clip", "openai", "transformers", "peft"
# Options of both towers that the other libraries know too, under the same or another name.
_SIZES = {
    *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"),
    *("context_length", "vocab_size", "heads"),
}
_WITHOUT_EFFECT = {"patch_dropout", "init_logit_scale"}
_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_OPENAI_HEAD_WIDTH = 64
_MLP_RATIO = 4.0
# What makes a model of open_clip a SigLIP: transformers' SiglipModel has no other values.
_SIGLIP_IMAGE = {"timm_pool": "map", "timm_proj": "none"}
_SIGLIP_TEXT: dict[str, Any] = {"no_causal_mask": True, "pool_type": "last"}
_TRUNK = "timm_model_name"
WAY_OUT = "Export it with --to open_clip, which holds every architecture."


def check_fits(architecture: Mapping[str, Any], target: str, name: str) -> None:
    """Check that a library can hold a model.

    Args:
        architecture: open_clip's configuration, with `quick_gelu` as the model was built.
        target: one of `TARGETS`.
        name: of the backbone, for the message.

    Raises:
        InputError: the library has no such model; names the option that it does not know.
    """
    if "text_cfg" not in architecture:
        raise InputError(
            f"--to {target}: {name} has no text tower, and every format is one of a whole CLIP. "
            "so_clip.adapters.restore and `python -m so_clip predict` read the run's adapter file."
        )
    if target == OPEN_CLIP or (target == TRANSFORMERS and is_siglip(architecture)):
        return
    reason = _unknown_option(architecture)
    if not reason:
        check = _not_openai if target == OPENAI else _not_transformers
        reason = check(architecture)
    if reason:
        raise InputError(f"--to {target}: {name} has {reason}. {WAY_OUT}")


def is_siglip(architecture: Mapping[str, Any]) -> bool:
    """Return whether transformers' SiglipModel has the same computation.

    It has that of SigLIP, and of SigLIP 2 with images of one size.
    """
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    return (
        "_siglip_" in str(vision.get(_TRUNK))
        and all(vision.get(key) == value for key, value in _SIGLIP_IMAGE.items())
        and all(text.get(key) == value for key, value in _SIGLIP_TEXT.items())
        and "hf_model_name" not in text
        and (bool(text.get("proj_bias")) or text.get("proj_type") == "none")
        and not architecture.get("quick_gelu")
    )


def tower_sizes(architecture: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """Return all options of a tower, "vision_cfg" or "text_cfg", with open_clip's defaults."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    known = CLIPVisionCfg if tower == "vision_cfg" else CLIPTextCfg
    return vars(known()) | dict(architecture[tower])


def _unknown_option(architecture: Mapping[str, Any]) -> str:
    for key in architecture.keys() - _TOP - _WITHOUT_EFFECT:
        return f"the option {key}, which only open_clip knows"
    for tower in ("vision_cfg", "text_cfg"):
        defaults = tower_sizes({tower: {}}, tower)
        for option, value in architecture[tower].items():
            if option in _SIZES | _WITHOUT_EFFECT or value == defaults.get(option):
                continue
            return f"{tower}.{option}={value}, which only open_clip knows"
    return ""


def _not_openai(architecture: Mapping[str, Any]) -> str:
    vision, text = (tower_sizes(architecture, tower) for tower in ("vision_cfg", "text_cfg"))
    if not architecture.get("quick_gelu"):
        return "the activation GELU, and OpenAI's layout implies QuickGELU"
    for tower, sizes, heads in (
        ("vision_cfg", vision, _OPENAI_HEAD_WIDTH / vision["head_width"]),
        ("text_cfg", text, text["heads"] * _OPENAI_HEAD_WIDTH / text["width"]),
    ):
        if heads != 1:
            return f"attention heads in {tower} that are not {_OPENAI_HEAD_WIDTH} wide"
        if sizes["mlp_ratio"] != _MLP_RATIO:
            return f"{tower}.mlp_ratio={sizes['mlp_ratio']} in place of {_MLP_RATIO}"
    return ""


def _not_transformers(architecture: Mapping[str, Any]) -> str:
    layers = tower_sizes(architecture, "vision_cfg")["layers"]
    if not isinstance(layers, int):
        return f"a ResNet of {layers} layers as its image encoder, and CLIPModel has a ViT"
    return ""
