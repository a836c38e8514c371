"""Open nothing of a sentence encoder: only the classification head that belongs to the task."""

from torch import nn

from so_clip.clip.classifier import Classifier
from so_clip.methods.adapter import Adapter


class Head(Adapter):
    """Trains nothing of the encoder. A run on sentences trains the head beside every adapter.

    See `dense_rest` in so_clip.config.sentence_settings. CLIP has no such head: for images there
    is linear_probe.
    """

    for_sentences = True
    plain = True

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open nothing."""
        return {}
