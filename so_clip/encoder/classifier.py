"""An encoder as a model that adapters and the training loop see: tokens in, logits out."""

from typing import Any

from torch import Tensor

from so_clip.clip.adaptable import AdaptableModel
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.methods.random_draws import DropoutDraws, use_globally


class SentenceClassifier(AdaptableModel):
    """logits_BK = classifier(pooled(encoder(tokens_B3L))), the model of transformers.

    All dropout in the model, that of an adapter's layers included, draws from one generator. It
    drops in training mode only.

    Args:
        encoder: on its device. All its parameters are frozen here; an adapter opens some.
        seed: of dropout.

    Attributes:
        draws: the generator of dropout.
    """

    backbone: SentenceEncoder
    draws_dropout = True

    def __init__(self, encoder: SentenceEncoder, seed: int) -> None:
        super().__init__()
        self.backbone = encoder
        self.draws = DropoutDraws(seed, encoder.device)
        encoder.requires_grad_(False)

    def forward(self, tokens_B3L: Tensor) -> Tensor:
        """Return logits_BK in float32 for a padded batch: ids, attention mask and token types."""
        if not self.training:
            return self.backbone.logits(tokens_B3L)
        # Not a hook: an adapter may have hooks with a generator of its own around this call.
        with use_globally(self.draws.generator):
            return self.backbone.logits(tokens_B3L)

    def trains(self, tower: str) -> bool:
        """Return whether any parameter of the tower is trainable; the only tower is `text`."""
        is_open = any(parameter.requires_grad for parameter in self.backbone.model.parameters())
        return tower == "text" and is_open

    def not_capturable(self) -> str | None:
        """Return why no CUDA graph can hold a training step of this model."""
        return "batches of sentences may have different lengths"

    def training_state(self) -> dict[str, Any]:
        """Return the state of dropout's generator, for a checkpoint."""
        return {"dropout": self.draws.generator.get_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore that state."""
        self.draws.generator.set_state(state["dropout"])
