"""Tip-Adapter: a cache of the few-shot images beside the class prompts, with or without training.

Source: Tip-Adapter, arXiv 2207.09519; released code: github gaopengcuhk/Tip-Adapter.

Tensor names end in their shape: B images of a batch, N few-shot images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.checks import one_of
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Head
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.options import flag, whole, zero_or_above

CONSTANTS = ("paper", "released")


class TipAdapter(Adapter):
    """logits_BK = scale · f t^T + alpha · exp(-beta (1 - f keys^T)) values.

    Each few-shot image has a key, the unit-length mean embedding of several random crops, and a
    value, its class as a one-hot vector. With `train` the keys are trained (Tip-Adapter-F). As in
    the released code, training does not keep them at unit length.

    Deviations from the published method: the authors search alpha and beta on other images than
    the training images, and their code keeps the epoch that is best on the test images. Here alpha
    and beta are options and the last step counts. They average embeddings before these are made
    unit-length, we average them after.

    Args:
        shots: training images per class, at most.
        alpha: weight of the cache against the class prompts, 0 or above.
        beta: how fast a key's weight falls with its distance, 0 or above.
        views: random crops of each image; 0 takes the centre crop of test images.
        train: whether to train the keys.
        constants: the source of alpha and beta in the configuration: "paper" (before any search) or
            "released" (the authors' configuration of the dataset).
    """

    class_bound = True

    def __init__(
        self,
        shots: int,
        alpha: float | None = 1.0,
        beta: float = 5.5,
        views: int = 10,
        train: bool = False,
        constants: str = "paper",
    ) -> None:
        one_of("adapter.constants", constants, CONSTANTS)
        if alpha is None and constants == "released":
            raise InputError(
                "adapter.constants=released: Tip-Adapter's authors released no alpha for this "
                "dataset. Set adapter.alpha=, or take adapter.constants=paper."
            )
        self.shots, self.views = whole("shots", shots, 1), whole("views", views, 0)
        self.alpha, self.beta = zero_or_above("alpha", alpha), zero_or_above("beta", beta)
        self.train = flag("train", train)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add an empty cache to the head; return its keys if they are trained."""
        class_KD = classifier.classes()
        keys_ND = class_KD.new_zeros(self.shots * len(class_KD), class_KD.shape[1])
        scale = classifier.backbone.logit_scale
        head = CacheHead(scale, keys_ND, len(class_KD), self.alpha, self.beta)
        head.keys.requires_grad_(self.train)
        classifier.head = head
        return {"head.keys": head.keys} if self.train else {}

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Fill the cache. With fewer images the rest of the keys stays zero and has no class.

        Raises:
            InputError: there are more training images than `shots` per class.
        """
        head, labels_N = classifier.head, few_shots.labels_N
        assert isinstance(head, CacheHead)
        count = len(labels_N)
        if count > len(head.keys):
            raise InputError(
                f"adapter.shots={self.shots}: {count} training images of {classifier.class_count} "
                "classes are more. Leave the option out."
            )
        # One view at a time: all views at once would take ten times the memory.
        sum_ND = few_shots.encode(min(self.views, 1))[0].clone()
        for _ in range(1, self.views):
            sum_ND += few_shots.encode(1)[0]
        head.keys[:count] = F.normalize(sum_ND, dim=-1)
        head.values[:count] = F.one_hot(labels_N, classifier.class_count).to(head.values.dtype)


class CacheHead(Head):
    """Scaled cosines with the classes, plus the classes of the keys near an image.

    Args:
        scale: of the cosines.
        keys_ND: one key per few-shot image.
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
        """Return the sum of both logits_BK."""
        near_BN = torch.exp(self.beta * (image_BD @ self.keys.T - 1))
        return self.scale * image_BD @ class_KD.T + self.alpha * near_BN @ self.values
