"""The model of a run: classifier, adapter and trained parameters."""

from dataclasses import dataclass

import torch
from torch import nn

from so_clip.clip.classifier import Classifier
from so_clip.methods.adapter import Adapter
from so_clip.runtime.precision import Precision


@dataclass(frozen=True)
class Model:
    """A classifier on its device, its adapter, and the parameters that the adapter opened.

    Attributes:
        base_names: of the classifier's state dict before the adapter added tensors.
    """

    classifier: Classifier
    adapter: Adapter | None
    parameters: dict[str, nn.Parameter]
    device: torch.device
    precision: Precision
    weights_sha256: str
    base_names: frozenset[str] = frozenset()
