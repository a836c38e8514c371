"""What each library's export holds: its files, and how the library loads them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from so_clip.clip.architecture_names import TINY
from so_clip.clip.backbone import Backbone
from so_clip.clip.layouts import to_hugging_face
from so_clip.errors import InputError
from so_clip.export import snippets
from so_clip.export.bases import hub_name, transformers_name
from so_clip.export.card import Loading
from so_clip.export.files import SAFETENSORS, save_tensors
from so_clip.export.hugging_face import model_config, processor_files
from so_clip.export.sizes import OPEN_CLIP, OPENAI, PEFT, TRANSFORMERS

_SUFFIXES = {
    OPEN_CLIP: (SAFETENSORS, ".pt", ".pth", ".bin"),
    OPENAI: (".pt", ".pth"),
}
_CONFIG_FILE = "open_clip_config.json"
_TINY_NAME = "so_clip_tiny"
_OPENAI_PIXELS = "OpenAI's mean and standard deviation of pixels"


@dataclass(frozen=True)
class Content:
    """The files of an export.

    Attributes:
        names: of the files.
        write: writes them into a folder.
        loading: for the card.
        hub_names: names in a repository of the hub, where they differ.
        hub_loading: for the card in the repository, where it differs.
    """

    names: list[str]
    write: Callable[[Path], None]
    loading: Loading
    hub_names: Mapping[str, str]
    hub_loading: Callable[[str], Loading]


def split_place(place: Path, target: str) -> tuple[Path, str]:
    """Return the folder of an export, and the name of its checkpoint; "" for a whole folder.

    Raises:
        InputError: the file has a suffix that the library does not read.
    """
    suffixes = _SUFFIXES.get(target)
    if suffixes is None:
        return place, ""
    if place.suffix not in suffixes:
        raise InputError(
            f"{place}: --to {target} writes a file that ends in {' or '.join(suffixes)}."
        )
    return place.parent, place.name


def full_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return a plain model's tensors in float32, with the classifier's factor as logit_scale."""
    state = {
        name: value.detach().float() if value.is_floating_point() else value
        for name, value in backbone.model.state_dict().items()
    }
    scale = torch.tensor(math.log(backbone.logit_scale))
    return state | {"logit_scale": scale.reshape(state["logit_scale"].shape)}
