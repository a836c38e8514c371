"""The two towers of a CLIP model and their residual blocks, for every family of open_clip."""

import re
from typing import Any, Literal

from torch import nn

Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, Tower] = ("vision", "text")
# Names of lists of blocks: in open_clip, timm (ViTamin's stages are lists) and Hugging Face. The
# lists inside a block of T5 (`block.0`) are none.
_LIST = re.compile(
    r"(?!.*\bblock\.)(.*\.)?(resblocks|blocks|block|(albert_)?layers?|layer\d|stages\.\d+)"
)
# From pixels to the first tokens; ViTamin's stem has blocks of its own.
STEM = re.compile(r"patch_embed\.|\.stem\.|^visual\.(conv|bn)\d\.")
# CoCa's second text model, which no embedding reaches.
CAPTION_DECODER = "text_decoder."


def tower_of(parameter_name: str) -> Tower:
    """Return the tower, vision or text, that a parameter of an open_clip model belongs to."""
    return "vision" if parameter_name.startswith("visual.") else "text"


def has_text(model: Any) -> bool:
    """Return whether a model has a text tower; an image model of timm has none."""
    return hasattr(model, "encode_text")


def text_tower(model: Any) -> Any:
    """Return the module that has the text tower's parts: the model's `text`, or the model itself.

    The model itself has the image tower, too; see `text_blocks`.
    """
    return getattr(model, "text", model)


def text_blocks(model: Any) -> nn.Module:
    """Return the module that holds a text tower's blocks, and no image tower."""
    tower: nn.Module = getattr(model, "text", None) or model.transformer
    return tower


def image_sides(model: Any) -> tuple[int, int]:
    """Return height and width of the images that an open_clip model takes, pixels."""
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def block_lists(module: nn.Module) -> dict[str, nn.Sequential | nn.ModuleList]:
    """Return the lists of residual blocks inside a module and their names, from input to output.

    A list that contains another list of blocks is not one: Swin's `layers` are stages. A stem's
    lists are included.
    """
    found = {
        name: inner
        for name, inner in module.named_modules()
        if isinstance(inner, (nn.Sequential, nn.ModuleList)) and _LIST.fullmatch(name)
    }
    return {
        name: blocks
        for name, blocks in found.items()
        if len(blocks) and not any(other.startswith(f"{name}.") for other in found)
    }


def named_blocks(model: nn.Module, tower: Tower) -> list[tuple[str, nn.Module]]:
    """Return a tower's residual blocks and their names, from input to output.

    Args:
        model: an open_clip model.
        tower: vision | text. A stem's blocks are left out, and so is CoCa's caption decoder.
    """
    return [
        (f"{name}.{number}", block)
        for name, blocks in block_lists(model).items()
        if tower_of(name) == tower
        and not STEM.search(f"{name}.")
        and not name.startswith(CAPTION_DECODER)
        for number, block in blocks.named_children()
    ]
