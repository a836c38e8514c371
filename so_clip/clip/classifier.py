"""A CLIP backbone and a dataset's class prompts as one module: images in, logits out."""

from functools import partial

import torch
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone, Tower
from so_clip.clip.packed_text import TEXT_BUDGETS_MIB, ClassPrompts

TOWERS = ("vision", "text")


def tower_of(parameter_name: str) -> Tower:
    """Return the tower, vision or text, that a parameter of an open_clip model belongs to."""
    return "vision" if parameter_name.startswith("visual.") else "text"


class Classifier(nn.Module):
    """logits_BK = logit_scale * image_BD @ class_KD.T, both of unit length.

    A tower that nothing in it trains is run without a graph, and a text tower that is not trained
    encodes the prompts once.

    Args:
        backbone: the CLIP model; all of its parameters are frozen here, for an adapter to open.
        tokens_KL: one tokenised prompt per class.
        text_budget_mib, share_prefixes: how much memory the prompts may take while they are
            trained, and whether they share what they have in common; see ClassPrompts. None: as
            much as goes with the backbone's `memory`.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens_KL: Tensor,
        text_budget_mib: float | None = None,
        share_prefixes: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if text_budget_mib is None:
            text_budget_mib = TEXT_BUDGETS_MIB[backbone.memory]
        self._pack = partial(
            ClassPrompts,
            tokens_KL=tokens_KL,
            budget_mib=text_budget_mib,
            share_prefixes=share_prefixes,
        )
        self.prompts: ClassPrompts = self._pack(backbone.model)
        self._class_KD: Tensor | None = None
        backbone.requires_grad_(False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK for uint8 images."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains("vision")):
            image_BD = self.backbone.encode_image(images_BCHW)
        return self.logits(image_BD)

    def logits(self, image_BD: Tensor) -> Tensor:
        """Return logits_BK for unit-length embeddings of images; in float32, autocast or not.

        Autocast would round cosines, times 100, to the two or three digits of half precision.
        """
        class_KD = self.classes()
        with _exact(image_BD.device):
            return self.backbone.logit_scale * image_BD @ class_KD.T

    def classes(self) -> Tensor:
        """Return class_KD, anew and with its graph while the text tower is being trained.

        Otherwise they are made once, in float32 whatever autocast says.
        """
        if torch.is_grad_enabled() and self.trains("text"):
            self._class_KD = None
            return self.backbone.encode_text(self.prompts)
        if self._class_KD is None:
            # Kept beyond the mode and the precision that this call runs in: training must find
            # neither a tensor of inference mode nor what an evaluation in bf16 has rounded.
            exact = _exact(self.backbone.mean.device)
            with torch.inference_mode(False), torch.no_grad(), exact:
                self._class_KD = self.backbone.encode_text(self.prompts)
        return self._class_KD

    def keep_prompts_apart(self) -> None:
        """Give each class's prompt rows of its own, for a text tower that draws random numbers."""
        self.prompts = self._pack(self.backbone.model, apart=True).to(self.prompts.place_K.device)

    def trains(self, tower: str) -> bool:
        """Whether any parameter of the tower is open."""
        return any(
            parameter.requires_grad and tower_of(name) == tower
            for name, parameter in self.backbone.model.named_parameters()
        )


def _exact(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
