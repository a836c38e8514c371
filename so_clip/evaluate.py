"""Predictions over a test set, and the figures that follow from them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from so_clip.precision import Precision


@dataclass(frozen=True)
class Predictions:
    """One row per test image, in the test split's order, on the CPU."""

    label_N: Tensor
    predicted_N: Tensor
    confidence_N: Tensor  # softmax probability of the predicted class, in [0, 1]

    @property
    def accuracy_percent(self) -> float:
        """Top-1 accuracy over all images, in percent."""
        return 100.0 * (self.label_N == self.predicted_N).double().mean().item()


@torch.no_grad()
def evaluate(
    classifier: nn.Module,
    test_batches: Iterable[tuple[Tensor, Tensor]],
    *,
    image_count: int,
    device: torch.device,
    precision: Precision,
    description: str,
) -> Predictions:
    """Classify every test image; results stay on the device until the last batch.

    Args:
        classifier: images_BCHW uint8 -> logits_BK.
        test_batches: (images_BCHW uint8, labels_B) on the CPU, pinned where the device is CUDA.
        image_count: length of the progress bar.
        device: where the classifier lives.
        precision: autocast for the forward passes.
        description: the progress bar's title.
    """
    labels, predicted, confidence = [], [], []
    with tqdm(total=image_count, desc=description, unit="image", dynamic_ncols=True) as progress:
        for images_BCHW, labels_B in test_batches:
            with precision.autocast():
                logits_BK = classifier(images_BCHW.to(device, non_blocking=True))
            top_B = logits_BK.float().softmax(dim=1).max(dim=1)
            labels.append(labels_B)
            predicted.append(top_B.indices)
            confidence.append(top_B.values)
            progress.update(len(labels_B))
    return Predictions(
        label_N=torch.cat(labels),
        predicted_N=torch.cat(predicted).cpu(),
        confidence_N=torch.cat(confidence).cpu(),
    )
