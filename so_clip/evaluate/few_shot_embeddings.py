"""Embeddings of the few-shot images, for adapters whose first values depend on them.

Tensor names end in their shape: N few-shot images, V views of each, B images of a batch, C H W
pixels, D embedding.
"""

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import TrainBatches
from so_clip.data.transforms import TestPixels
from so_clip.runtime.precision import Precision


class FewShotEmbeddings:
    """Encodes the few-shot images; implements `so_clip.methods.adapter.FewShots`.

    Args:
        classifier: its image tower, in its current state, encodes the images.
        batches: have the images, their labels and the crop; their generator does not advance.
        precision: of the image tower.
        seed: of the crops.
    """

    def __init__(
        self, classifier: Classifier, batches: TrainBatches, precision: Precision, seed: int
    ) -> None:
        self._classifier, self._batches, self._precision = classifier, batches, precision
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def labels_N(self) -> Tensor:
        """Labels, int64, on the device."""
        return self._batches.labels_N.to(self._batches.device)

    def encode(self, views: int = 0) -> Tensor:
        """Return unit-length image_VND of random crops; with views=0, of the test view (V = 1)."""
        rounds = [self._encode(centre=False) for _ in range(views)] or [self._encode(centre=True)]
        return torch.stack(rounds)

    @torch.no_grad()
    def _encode(self, centre: bool) -> Tensor:
        backbone, batches = self._classifier.backbone, self._batches
        order = range(len(batches.images))
        centred = (
            torch.stack([_centre(image, backbone.pixels) for image in images])
            for images in batches.in_groups(order)
        )
        parts = []
        for images_BCHW in centred if centre else batches.cropped(order, self._generator):
            with self._precision.autocast():
                parts.append(backbone.encode_image(images_BCHW.to(batches.device)))
        return torch.cat(parts).float()


def _centre(image_CHW: Tensor, pixels: TestPixels) -> Tensor:
    return pil_to_tensor(pixels.square(to_pil_image(image_CHW.cpu())))
