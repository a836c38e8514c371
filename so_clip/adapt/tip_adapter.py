"""Tip-Adapter: the few shots as a cache beside the class prompts, as it is or with trained keys.

Source: Tip-Adapter, arXiv 2207.09519; released code: github gaopengcuhk/Tip-Adapter.

Tensor names end in their shape: B images of a batch, N training images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.checks import number, whole
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Head
from so_clip.errors import InputError


class TipAdapter(Adapter):
    """logits_BK = scale · f t^T + alpha · exp(-beta (1 - f keys^T)) values.

    A key is the unit-length mean of what the image tower makes of several random crops of one
    training image, its value the image's class, one-hot. With `train` the keys are trained from
    there (Tip-Adapter-F); nothing keeps them at unit length then, as in the released code.

    The authors search alpha and beta on images that are no training images, and their code keeps
    the epoch that is best on the test images. Here alpha and beta are settings and the last step
    counts. Their means are of embeddings before these are made unit-length, ours of those after.

    Args:
        shots: training images of each class.
        alpha: how much the cache counts beside the class prompts, 0 or above.
        beta: how fast a key's say falls with its distance, 0 or above.
        views: random crops of each image; 0 takes its centre, as test images are cropped.
        train: train the keys.
    """

    class_bound = True

    def __init__(
        self,
        shots: int,
        alpha: float = 1.0,
        beta: float = 5.5,
        views: int = 10,
        train: bool = False,
    ) -> None:
        self.shots, self.views = whole("adapter.shots", shots, 1), whole("adapter.views", views, 0)
        self.alpha, self.beta = number("adapter.alpha", alpha), number("adapter.beta", beta)
        for key in ("alpha", "beta"):
            if getattr(self, key) < 0:
                raise InputError(f"adapter.{key}={getattr(self, key)}: must be 0 or above.")
        if not isinstance(train, bool):
            raise InputError(f"adapter.train={train}: must be true or false.")
        self.train = train

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Put an empty cache beside the class prompts; return its keys if they are trained."""
        class_KD = classifier.classes()
        keys_ND = class_KD.new_zeros(self.shots * len(class_KD), class_KD.shape[1])
        scale = classifier.backbone.logit_scale
        head = CacheHead(scale, keys_ND, len(class_KD), self.alpha, self.beta)
        head.keys.requires_grad_(self.train)
        classifier.head = head
        return {"head.keys": head.keys} if self.train else {}

    @torch.no_grad()
    def start(self, classifier: Classifier, support: Support) -> None:
        """Fill the cache.

        Raises:
            InputError: there are not `shots` training images a class.
        """
        head, labels_N = classifier.head, support.labels_N
        assert isinstance(head, CacheHead)
        if len(labels_N) != len(head.keys):
            raise InputError(
                f"adapter.shots={self.shots}: {len(labels_N)} training images of "
                f"{classifier.class_count} classes are more or fewer. Leave the option out."
            )
        # View by view: all of them at once would take ten times the memory.
        sum_ND = support.encode(min(self.views, 1))[0].clone()
        for _ in range(1, self.views):
            sum_ND += support.encode(1)[0]
        head.keys.copy_(F.normalize(sum_ND, dim=-1))
        head.values.copy_(F.one_hot(labels_N, classifier.class_count))


class CacheHead(Head):
    """Scaled cosines with the classes, plus what the keys near an image say of its class.

    Args:
        scale: of the cosines.
        keys_ND: one for each training image.
        classes: K.
        alpha, beta: see TipAdapter.
    """

    values: Tensor  # [N, K], one-hot; all zero while the cache is empty

    def __init__(
        self, scale: float, keys_ND: Tensor, classes: int, alpha: float, beta: float
    ) -> None:
        super().__init__(scale)
        self.keys = nn.Parameter(keys_ND)
        self.register_buffer("values", keys_ND.new_zeros(len(keys_ND), classes))
        self.alpha, self.beta = alpha, beta

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK of both sources."""
        near_BN = torch.exp(self.beta * (image_BD @ self.keys.T - 1))
        return self.scale * image_BD @ class_KD.T + self.alpha * near_BN @ self.values
