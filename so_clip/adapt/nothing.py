"""The adapter of zero-shot CLIP: nothing changes."""

from torch import nn

from so_clip.clip.classifier import Classifier


class Nothing:
    """Leaves the model as it is."""

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Return no parameters."""
        return {}
