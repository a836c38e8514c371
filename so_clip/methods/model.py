"""The model of a run: classifier, adapter and trained parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        dense: the names of parameters that a sparse optimizer trains densely, such as a new head.
        dense_options: options of the optimizer for these, in place of its own.
    """

    classifier: Classifier
    adapter: Adapter | None
    parameters: dict[str, nn.Parameter]
    device: torch.device
    precision: Precision
    weights_sha256: str
    base_names: frozenset[str] = frozenset()
    dense: frozenset[str] = frozenset()
    dense_options: Mapping[str, Any] = field(default_factory=dict)
