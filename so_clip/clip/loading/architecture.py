"""Build a model with random weights from an architecture's name: of open_clip, or of timm."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from so_clip.clip.loading.architecture_names import (
    TINY,
    check_architecture,
    is_image_only,
    is_place,
)
from so_clip.clip.loading.sources import place_config
from so_clip.clip.loading.timm_entries import timm_config
from so_clip.clip.loading.timm_model import build_image_model
from so_clip.clip.loading.weightless import RealNumbers
from so_clip.clip.loading.weights_file import TINY_CARD
from so_clip.errors import InputError
from so_clip.system.paths import ASSETS_DIR
from so_clip.system.safe_open import read_plain

_LONGEST = 300  # characters of an error's text


def tiny_card(folder: Path = ASSETS_DIR) -> dict[str, Any]:
    """Return tiny.json of the embedded CLIP, or of `folder`: sizes, seeds, mean and std.

    Raises:
        InputError: the file is missing, or differs from what the pre-training writes.
    """
    path = folder / TINY_CARD
    try:
        card = json.loads(read_plain(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"backbone.checkpoint={folder}: {TINY_CARD} in this folder cannot be read ({error}). "
            "Give a file, or a folder that scripts/pretrain_tiny.py --out wrote."
        ) from error
    if folder != ASSETS_DIR:
        shipped = tiny_card()
        for key in ("architecture", "embedding_seed", "embedding_std", "mean", "std"):
            found = card.get(key) if isinstance(card, dict) else None
            if not _alike(found, shipped[key]):
                raise InputError(
                    f"{path}: {key} is {found!r}; it must have the form of {shipped[key]!r}. "
                    "Write the folder again with scripts/pretrain_tiny.py --out."
                )
    return card


def _alike(value: Any, model: Any) -> bool:
    """Return whether two JSON values have the same keys, lengths and types, and sizes > 0."""
    if type(value) is not type(model):
        return False
    if isinstance(value, dict):
        return value.keys() == model.keys() and all(_alike(value[key], model[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(model) and all(map(_alike, value, model))
    return isinstance(value, bool) or value > 0


def architecture_config(name: str, tiny_folder: Path = ASSETS_DIR) -> dict[str, Any]:
    """Return the sizes of an architecture, open_clip's model_cfg.

    They come from open_clip, from `tiny_folder` for "tiny", or from a repository or folder. An
    image model of timm has no text_cfg.

    Raises:
        InputError: there is no such architecture; the message has the nearest names.
    """
    import open_clip

    if name == TINY:
        return dict(tiny_card(tiny_folder)["architecture"])
    # list_models also names what add_model_config has added. Only a prefix leads to the hub or to a
    # folder, because a name may come from someone's file.
    if is_place(name):
        check_architecture(name)
        return place_config(name)
    if is_image_only(name):
        return timm_config(name)
    if name not in open_clip.list_models():
        check_architecture(name)
    return dict(open_clip.get_model_config(name))


def build_model(config: dict[str, Any], quick_gelu: bool, seed: int) -> nn.Module:
    """Build an open_clip model or an image model with random float32 weights on the CPU.

    It calls open_clip's class directly, because open_clip's factory looks for published weights of
    single towers and cannot run on fake tensors. Inside torch's FakeTensorMode the model has no
    values, and takes no memory for weights.

    Args:
        config: open_clip's model configuration (embed_dim, vision_cfg, text_cfg, ...); without
            text_cfg it is that of `timm_config`.
        quick_gelu: whether to use OpenAI's approximation of GELU; overrides `config`.
        seed: of the weights; the global random state does not change.

    Raises:
        InputError: the model needs a package that is not installed, or files from the hub.
    """
    if "text_cfg" not in config:
        with seeded(seed):
            return build_image_model(config)
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    values = {key: value for key, value in config.items() if key != "custom_text"}
    values["vision_cfg"] = dict(values["vision_cfg"])
    values["text_cfg"] = dict(values["text_cfg"])
    model_class: Any = CLIP
    if config.get("custom_text") or "hf_model_name" in values["text_cfg"]:
        model_class = CoCa if "multimodal_cfg" in values else CustomTextCLIP
    if "timm_model_name" in values["vision_cfg"]:
        values["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in values["text_cfg"]:
        values["text_cfg"]["hf_model_pretrained"] = False
    with seeded(seed):
        try:
            model = model_class(**values | {"quick_gelu": quick_gelu})
            if isinstance(model, CoCa):
                _fill_caption_projection(model)
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"the backbone cannot be built: {error} backbone=vit_b16 has no such requirement."
            ) from error
        except Exception as error:  # values that no model has raise almost any exception
            raise InputError(
                f"the backbone cannot be built from its model_cfg: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:_LONGEST]}. Its values are wrong, or this version "
                "of open_clip is too old for it."
            ) from error
    _keep_first_token_only(model)
    return model


def _fill_caption_projection(model: Any) -> None:
    """Draw the one weight that open_clip leaves as it was in memory, with open_clip's own size."""
    projection = model.text_decoder.text_projection
    nn.init.normal_(projection, std=len(projection) ** -0.5)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build a model in this context from a seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]), RealNumbers():
        # torch.manual_seed would also seed the CUDA generators.
        torch.default_generator.manual_seed(seed)
        yield


def _keep_first_token_only(model: Any) -> None:
    """Skip the selection of all other tokens in a Hugging Face tower read at its first token.

    open_clip selects them by a mask, and no embedding depends on them. Tensors without values
    cannot do this: the number of selected tokens is unknown. open_clip compares the pooler's type,
    so a subclass avoids the selection.
    """
    pooler = getattr(getattr(model, "text", None), "pooler", None)
    if type(pooler).__name__ == "ClsPooler":
        pooler.__class__ = type("FirstToken", (type(pooler),), {})
