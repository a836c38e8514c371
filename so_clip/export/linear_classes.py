"""The classifier of an adapted model as one matrix, if its logits are linear in the image.

Tensor names end in their shape: B images, K classes, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError

_SEED, _PAIRS = 0, 4
# Relative to the largest logit. Float32 rounds a product of 1024 terms by about a millionth.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LinearClasses:
    """logits_BK = image_BD @ weight_KD.T + bias_K, for unit-length image embeddings.

    Attributes:
        weight_KD, bias_K: in float32 on the CPU. CLIP's factor of 100 is in the weights.
    """

    weight_KD: Tensor
    bias_K: Tensor


@torch.no_grad()
def linear_classes(classifier: Classifier, method: str) -> LinearClasses:
    """Return the classifier's weights and bias.

    They are read from the logits: logits(0) is the bias, and logits(e_d) - logits(0) is column d.

    Args:
        classifier: the adapted model in evaluation mode, with its own head and prompts.
        method: its name, for the message.

    Raises:
        InputError: the logits are not linear in the image embedding, as with a cache of images, or
            with prompts that each image changes.
    """
    device, width = classifier.backbone.mean.device, classifier.backbone.dimensions
    draws = torch.Generator().manual_seed(_SEED)
    pairs_2BD = F.normalize(torch.randn(2, _PAIRS, width, generator=draws), dim=-1).to(device)
    zero_1D = pairs_2BD.new_zeros(1, width)
    first_BK, second_BK, sum_BK, bias_1K = classifier.logits(
        torch.cat([*pairs_2BD, pairs_2BD.sum(0), zero_1D])
    ).split([_PAIRS, _PAIRS, _PAIRS, 1])
    error = (first_BK + second_BK - bias_1K - sum_BK).abs().max()
    if not error <= _TOLERANCE * sum_BK.abs().max():
        raise InputError(
            f"method={method}: its logits are not linear in the image's embedding, because each "
            "image changes the prompts or is compared with a cache. No file of weights can hold "
            "that. Classify with `python -m so_clip predict`."
        )
    columns_DK = classifier.logits(torch.eye(width, device=device)) - bias_1K
    return LinearClasses(columns_DK.T.float().cpu().contiguous(), bias_1K[0].float().cpu())
