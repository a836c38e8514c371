"""Each model's own pixels: resizing, mean and standard deviation as its weights were trained with.

open_clip and timm have these values for published weights, and `preprocess_cfg` of a configuration
on the hub has them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from so_clip.clip.loading.architecture import tiny_card
from so_clip.clip.loading.architecture_names import TINY, is_image_only
from so_clip.clip.loading.hub import pretrained_config, pretrained_tags
from so_clip.data.transforms import Interpolation, ResizeMode, TestPixels
from so_clip.errors import InputError, note
from so_clip.system.commands import override
from so_clip.system.paths import ASSETS_DIR

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Colour = tuple[float, float, float]
# open_clip's training option; its test transform then resizes bicubically.
_RANDOM, _BICUBIC = ("interpolation", "random"), "bicubic"


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the input of a model. The defaults are CLIP's.

    Attributes:
        resize_mode, interpolation: see TestPixels.
        mean, std: of the pixels, per channel, for pixels in [0, 1].
        fill_color: grey value of the rest of the square, with resize_mode longest.
        crop_share: see TestPixels; no model of open_clip has another value than 1.
    """

    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD
    fill_color: int = 0
    crop_share: float = 1.0

    def pixels(self, image_size: int) -> TestPixels:
        """Return the test transform of a model that takes squares of this size."""
        return TestPixels(
            image_size, self.resize_mode, self.interpolation, self.fill_color, self.crop_share
        )

    def record(self) -> dict[str, Any]:
        """Return the values as open_clip's `preprocess_cfg` has them, as JSON values.

        open_clip has no `crop_share`, so it is left out if it is 1.
        """
        values = {field.name: _listed(getattr(self, field.name)) for field in fields(self)}
        if self.crop_share == 1:
            del values["crop_share"]
        return values

    def differences(self, usual: "Preprocessing") -> dict[str, Any]:
        """Return the values that differ from the usual ones; `fill_color` only with longest."""
        known = {"crop_share": 1.0, **usual.record()}
        own = {"crop_share": 1.0, **self.record()}
        found = {name: value for name, value in own.items() if value != known[name]}
        if self.resize_mode != "longest":
            found.pop("fill_color", None)
        return found


def preprocessing_from(
    config: Mapping[str, Any], place: str, base: Preprocessing | None = None
) -> Preprocessing:
    """Return open_clip's `preprocess_cfg` or entry of published weights, checked.

    Its size is ignored, because the model has it. Keys that are missing, or that are None, keep the
    values of `base`, like in open_clip.

    Args:
        config: the mapping. It may have other keys.
        place: where it stands, for messages.
        base: what it completes. None: CLIP's.

    Raises:
        InputError: a value is not one that open_clip's transform takes.
    """
    given = {key: value for key, value in config.items() if value is not None}
    if given.get("mode", "RGB") != "RGB":
        raise InputError(f"{place}: mode is {given['mode']!r}; only RGB is supported.")
    values: dict[str, Any] = {}
    for key, choices in (("resize_mode", ResizeMode), ("interpolation", Interpolation)):
        if key not in given:
            continue
        values[key] = _BICUBIC if (key, given[key]) == _RANDOM else given[key]
        if values[key] not in get_args(choices):
            known = " or ".join(get_args(choices))
            raise InputError(f"{place}: {key} is {values[key]!r}; it must be {known}.")
    for key in ("mean", "std"):
        if key in given:
            values[key] = _colour(given[key], f"{place}: {key}", above_zero=key == "std")
    if "fill_color" in given:
        values["fill_color"] = _fill(given["fill_color"], f"{place}: fill_color")
    if "crop_share" in given:
        values["crop_share"] = _crop_share(given["crop_share"], f"{place}: crop_share")
    return replace(base or Preprocessing(), **values)


def chosen_preprocessing(
    architecture: str,
    published: Mapping[str, Any],
    has_checkpoint: bool,
    options: Mapping[str, Any],
    tiny_folder: Path = ASSETS_DIR,
) -> Preprocessing:
    """Return the preprocessing of a model.

    - With published weights: theirs, also for a checkpoint that replaces them.
    - Without: that of the architecture's published weights, if it is the same for all of them;
      else CLIP's, or ImageNet's for a model of timm, with a note if there is a checkpoint.
    - `options` replace single values.

    Args:
        architecture: "tiny", open_clip's name or `timm:NAME`.
        published: open_clip's or timm's entry of the weights, or `preprocess_cfg` of the hub's
            configuration; {} if the user named none.
        has_checkpoint: whether a local file has the weights.
        options: resize_mode, interpolation, mean, std and crop_share, as the user gave them.
        tiny_folder: has the card of "tiny".

    Raises:
        InputError: see preprocessing_from.
    """
    if architecture == TINY:
        found = _of_tiny(tiny_folder)
    elif published:
        found = preprocessing_from(published, f"the published weights of {architecture}")
    else:
        found = _of_architecture(architecture, has_checkpoint, options)
    return preprocessing_from(options, "backbone", found)


def named_preprocessing(architecture: str, pretrained: str | None) -> Preprocessing:
    """Return the preprocessing of a model by open_clip's names; see `chosen_preprocessing`.

    Raises:
        InputError: open_clip knows no such weights for this architecture.
    """
    has_entry = pretrained is not None and architecture != TINY
    published = pretrained_config(architecture, str(pretrained)) if has_entry else {}
    return chosen_preprocessing(architecture, published, False, {})


def _of_tiny(folder: Path = ASSETS_DIR) -> Preprocessing:
    card = tiny_card(folder)
    return Preprocessing(mean=tuple(card["mean"]), std=tuple(card["std"]))


def _of_architecture(
    architecture: str, has_checkpoint: bool, options: Mapping[str, Any]
) -> Preprocessing:
    """Return what all published weights of an architecture share; see `chosen_preprocessing`."""
    by_tag = published_preprocessing(architecture)
    kinds = set(by_tag.values())
    if len(kinds) == 1:
        return kinds.pop()
    usual, whose = Preprocessing(), "CLIP's"
    if is_image_only(architecture):
        usual, whose = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD), "ImageNet's"
    unusual = {tag: kind.differences(usual) for tag, kind in by_tag.items()}
    ways = [
        f"If it derives from {tag}, add {' '.join(map(_option, values.items()))}."
        for tag, values in unusual.items()
        if values.keys() - options.keys()
    ]
    if has_checkpoint and ways:
        note(
            f"the published weights of {architecture} were trained on different pixels, and this "
            f"checkpoint gets {whose}. {' '.join(ways)}"
        )
    return usual


def _option(item: tuple[str, Any]) -> str:
    return override(f"backbone.{item[0]}", item[1])


def published_preprocessing(architecture: str) -> dict[str, Preprocessing]:
    """Return the preprocessing of an architecture's published weights, by their tags."""
    return {
        tag: preprocessing_from(pretrained_config(architecture, tag), f"{architecture}, {tag}")
        for tag in pretrained_tags(architecture)
    }


def preprocessing_of(backbone: Any) -> Preprocessing:
    """Return the preprocessing of a loaded `Backbone`, without the digits that float32 adds."""
    pixels: TestPixels = backbone.pixels
    usual = Preprocessing()
    return Preprocessing(
        pixels.resize_mode,
        pixels.interpolation,
        _without_digits(backbone.mean, usual.mean),
        _without_digits(backbone.std, usual.std),
        pixels.fill,
        pixels.crop_share,
    )


def unusual_pixels(preprocessing: Preprocessing, architecture: str) -> dict[str, Any]:
    """Return what differs from CLIP's preprocessing; for "tiny", from its own. For fingerprints."""
    usual = _of_tiny() if architecture == TINY else Preprocessing()
    return preprocessing.differences(usual)


def _without_digits(values_C11: Tensor, usual: Colour) -> Colour:
    values_C = values_C11.flatten().cpu()
    if torch.equal(values_C, torch.tensor(usual)):
        return usual
    red, green, blue = (float(str(value)) for value in values_C.numpy().astype(np.float32))
    return red, green, blue


def _colour(value: Any, place: str, above_zero: bool) -> Colour:
    """Return three numbers from 0 to 1. open_clip takes one number for all channels too."""
    values = [value] * 3 if isinstance(value, (int, float)) else value
    is_list = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_list or not all(_is_share(part, above_zero) for part in values):
        least = "above 0, at most 1" if above_zero else "from 0 to 1"
        raise InputError(
            f"{place} is {value!r}; it must be three numbers {least}, for pixels from 0 to 1."
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _is_share(value: Any, above_zero: bool) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value <= 1 and not (above_zero and value == 0)


def _fill(value: Any, place: str) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise InputError(f"{place} is {value!r}; it must be a whole number from 0 to 255.")
    return value


def _crop_share(value: Any, place: str) -> float:
    if not _is_share(value, above_zero=True):
        raise InputError(f"{place} is {value!r}; it must be a number above 0, at most 1.")
    return float(value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
