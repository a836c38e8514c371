"""CoCoOp's logits: each image is compared with the classes as its own context names them.

Tensor names end in their shape: P prompts, L tokens, M vectors of the context, W width of the text
tower, B images, C of them at once, K classes, D embedding.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.adapt.coop_prompts import context_embedding, text_tower, without_padding
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.clip.packed_text import TEXT_BUDGETS_MIB, ClassPrompts

PROMPTS_AT_ONCE = 1024  # of how many images' classes, in evaluation


class ConditionalHead(Head):
    """Scaled cosines of each image with the classes as its own context names them.

    The prompts of several images are packed as one set. In training that bounds their memory as it
    does other methods'; in evaluation it makes for fewer and larger steps.

    Args:
        classifier: whose prompts and text tower are used, whatever they are by then. It is no
            submodule, which would be a circle.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.backbone.logit_scale)
        self._owner = (classifier,)
        self._take_prompts()  # now: a forecast's tensors will not tell their values later

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK."""
        (classifier,) = self._owner
        meta_net = context_embedding(classifier).meta_net
        assert meta_net is not None
        learns, device = torch.is_grad_enabled(), image_BD.device
        size = len(image_BD) if learns else max(1, PROMPTS_AT_ONCE // classifier.class_count)
        with exact(device):
            shift_BW = meta_net(image_BD)
        parts = []
        for image_CD, shift_CW in zip(image_BD.split(size), shift_BW.split(size), strict=True):
            # In the precision that Classifier.classes has for other methods.
            with nullcontext() if learns else exact(device):
                class_CKD = self._class_embeddings(shift_CW, learns)
            with exact(device):
                parts.append(self.scale * torch.einsum("cd,ckd->ck", image_CD, class_CKD))
        return torch.cat(parts)

    def _class_embeddings(self, shift_CW: Tensor, learns: bool) -> Tensor:
        (classifier,) = self._owner
        text, embedding = text_tower(classifier), context_embedding(classifier)
        context_CMW = embedding.context + shift_CW.unsqueeze(1)
        # Not set on the model: prompts may be encoded again, in the backward pass.
        shifted = _Shifted(text, partial(embedding, context_MW=context_CMW.flatten(0, 1)))
        text_PD = self._prompts(len(shift_CW), learns)(shifted, classifier.backbone.memory)
        text_PD = text_PD.to(torch.promote_types(text_PD.dtype, torch.float32))
        return F.normalize(text_PD, dim=-1).unflatten(0, (len(shift_CW), -1))

    def _take_prompts(self) -> None:
        (classifier,) = self._owner
        self._tokens_KL = classifier.tokens_PL
        self._of_one = [without_padding(prompt) for prompt in self._tokens_KL.tolist()]
        self._packed: dict[tuple[int, bool], ClassPrompts] = {}  # by images, and whether it learns

    def _prompts(self, images: int, learns: bool) -> ClassPrompts:
        """Return the prompts of so many images, the context of each with ids of its own."""
        (classifier,) = self._owner
        if self._tokens_KL is not classifier.tokens_PL:
            self._take_prompts()
        if (images, learns) not in self._packed:
            length = len(context_embedding(classifier).context)
            prompts = [
                [token - image * length if token < 0 else token for token in prompt]
                for image in range(images)
                for prompt in self._of_one
            ]
            budget_mib = classifier.text_budget_mib if learns else TEXT_BUDGETS_MIB["fast"]
            packed = ClassPrompts(classifier.backbone.model, prompts, budget_mib)
            self._packed[images, learns] = packed.to(classifier.prompts.place_K.device)
        return self._packed[images, learns]


class _Shifted:
    """A text tower with another token embedding, for prompts that are packed."""

    def __init__(self, text: Any, token_embedding: Any) -> None:
        self._text, self.token_embedding = text, token_embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)
