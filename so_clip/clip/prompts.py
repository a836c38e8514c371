"""From class names to prompts, and from prompts to class embeddings."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.errors import InputError


def class_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """Return one prompt a class: `template` with the name in place of {}, "_" read as a space.

    Raises:
        InputError: `template` does not have exactly one {}.
    """
    if template.count("{}") != 1:
        raise InputError(
            f"template={template!r}: needs exactly one {{}}, where the class name goes, as in "
            "'a photo of a {}.'."
        )
    before, after = template.split("{}")
    return [before + name.replace("_", " ") + after for name in class_names]


def encode_classes(
    backbone: Backbone, tokens_KL: Tensor, chunk_size: int = 256, grad: bool = False
) -> Tensor:
    """Return unit-length class_KD of the prompts, `chunk_size` classes at a time.

    Args:
        backbone: encodes the prompts, on whatever device it is.
        tokens_KL: token ids as `backbone.tokenize` returns them, on any device.
        chunk_size: classes in one forward pass.
        grad: keep the graph, to train the text encoder; chunks then save no memory.
    """
    tokens_KL = tokens_KL.to(backbone.mean.device, non_blocking=True)
    # Not inference_mode: its tensors could not take part in the loss of the image encoder.
    with nullcontext() if grad else torch.no_grad():
        return torch.cat([backbone.encode_text(chunk) for chunk in tokens_KL.split(chunk_size)])
