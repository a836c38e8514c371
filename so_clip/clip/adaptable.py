"""The interface of a model for adapters and the training loop: of CLIP and of sentence encoders."""

from typing import Any

import torch
from torch import nn

from so_clip.clip.engine.blocks import Memory
from so_clip.clip.roles import Part
from so_clip.clip.towers import TOWERS, Tower


class Encoder(nn.Module):
    """A pre-trained model, as adapters see it.

    Attributes:
        model: the library's model; its parameters keep their names.
        memory: fast | balanced | small, what is kept for the backward pass.
        description: architecture and origin of the weights, for records and messages.
        has_text: whether class names can be embedded.
        half_weights: whether frozen weights are in float16.
        towers: the towers that it can have.
    """

    model: Any
    memory: Memory
    description: str
    has_text: bool
    half_weights: bool = False
    towers: tuple[Tower, ...] = TOWERS

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        raise NotImplementedError

    def role_map(self) -> list[Part]:
        """Return the parts of the model: see so_clip.clip.roles. Call it before an adapter."""
        raise NotImplementedError

    @property
    def known_parts(self) -> list[Part]:
        """The last role map: that of the model before an adapter. [] if it was never asked for."""
        raise NotImplementedError

    def named_blocks(self, tower: Tower) -> list[tuple[str, nn.Module]]:
        """Return a tower's residual blocks and their names, from input to output."""
        raise NotImplementedError

    def blocks(self, tower: Tower) -> list[nn.Module]:
        """Return a tower's residual blocks, from input to output."""
        return [block for _, block in self.named_blocks(tower)]

    def block_count(self, tower: Tower) -> int:
        """Return the number of `blocks` in a tower."""
        return len(self.blocks(tower))


class AdaptableModel(nn.Module):
    """A model that classifies, as adapters and the training loop see it.

    An adapter with `for_sentences` uses nothing else of a model.

    Attributes:
        backbone: the pre-trained model.
        draws_dropout: whether it has dropout of its own, with a generator of its own. All dropout
            in the model then draws from that generator.
    """

    backbone: Any  # an Encoder; the subclass declares its own kind
    draws_dropout: bool = False

    def named(self) -> dict[str, nn.Parameter]:
        """Return all parameters by the names that adapters return."""
        return dict(self.backbone.model.named_parameters())

    def trains(self, tower: str) -> bool:
        """Return whether any parameter of the tower is trainable."""
        raise NotImplementedError

    def parts(self) -> tuple[Any, ...]:
        """Return the objects, beside parameters and buffers, that a training step may read."""
        return ()

    def not_capturable(self) -> str | None:
        """Return why no CUDA graph can hold a training step of this model; None if one can."""
        return None

    def forget_classes(self) -> None:
        """Drop what was computed from parts that are not parameters."""

    def separate_prompts(self) -> None:
        """Share no rows between prompts: an adapter draws random numbers for each prompt."""

    def training_state(self) -> dict[str, Any]:
        """Return the state of random draws, for a checkpoint."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore that state."""
