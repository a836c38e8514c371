"""The factor from cosines to logits and the bias that a model was trained with."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from so_clip.errors import InputError

AUTO: Literal["auto"] = "auto"
CLIP_SCALE = 100.0
# CLIP's scale was held at 100 in training, and files in half precision round it.
_ROUNDING = 0.5
# Files that hold the factor itself, not its logarithm, are above: 1 / 0.07, CLIP's start, is 14.3.
_MOST = 1e5


def scale_of(logit_scale: Tensor) -> float:
    """Return the factor on cosines from a model's `logit_scale`: exp, or CLIP's 100 if near it.

    Raises:
        InputError: it is no factor that a model was trained with.
    """
    scale = float(logit_scale.detach().double().exp())
    if not 1 / _MOST < scale < _MOST:
        raise InputError(
            f"logit_scale of the weights is {float(logit_scale.detach()):g}, the logarithm of "
            f"{scale:.3g}, and no CLIP was trained with such a factor. Give the factor with "
            "backbone.logit_scale=NUMBER; CLIP's is 100."
        )
    return CLIP_SCALE if abs(scale - CLIP_SCALE) < _ROUNDING else scale


def bias_of(model: Any) -> float:
    """Return the number that a model adds to all logits: its `logit_bias`, or 0.

    It changes no softmax probability. SigLIP's sigmoid needs it.
    """
    bias = getattr(model, "logit_bias", None)
    return 0.0 if bias is None else float(bias.detach())


def clip_logit_scale(like: Tensor) -> Tensor:
    """Return CLIP's scale as a model stores it, with the shape of `like`."""
    return torch.full_like(like, math.log(CLIP_SCALE))
