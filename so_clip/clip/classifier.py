"""A CLIP backbone and a dataset's class prompts as one module: images in, logits out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone, Tower
from so_clip.clip.heads import CosineHead, Head, exact
from so_clip.clip.packed_text import TEXT_BUDGETS_MIB, ClassPrompts

TOWERS: tuple[Tower, Tower] = ("vision", "text")


def tower_of(parameter_name: str) -> Tower:
    """Return the tower, vision or text, that a parameter of an open_clip model belongs to."""
    return "vision" if parameter_name.startswith("visual.") else "text"


class Classifier(nn.Module):
    """logits_BK = head(image_BD, class_KD), by default scaled cosines of what the towers return.

    A tower that nothing in it trains is run without a graph, and a text tower that is not trained
    encodes the prompts once. A class with several prompts is their mean, made unit-length; not all
    need have as many.

    Args:
        backbone: the CLIP model; all of its parameters are frozen here, for an adapter to open.
        tokens_PL: tokenised prompts, those of a class one after the other.
        text_budget_mib, share_prefixes: how much memory the prompts may take while they are
            trained, and whether they share what they have in common; see ClassPrompts. None: as
            much as goes with the backbone's `memory`.
        prompts_per_class: P / K, or where classes differ, how many each has.
        templates: what a class's prompts were made from, for adapters that rewrite them; none where
            each class has prompts of its own.

    Attributes:
        head: an adapter may put another in its place.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens_PL: Tensor,
        text_budget_mib: float | None = None,
        share_prefixes: bool = True,
        prompts_per_class: int | Sequence[int] = 1,
        templates: Sequence[str] = ("{}",),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: Head = CosineHead(backbone.logit_scale)
        self.tokens_PL = tokens_PL
        self.prompt_counts = _counts(prompts_per_class, len(tokens_PL))
        self.templates = tuple(templates)
        if text_budget_mib is None:
            text_budget_mib = TEXT_BUDGETS_MIB[backbone.memory]
        self.text_budget_mib = text_budget_mib
        self._pack = partial(
            ClassPrompts,
            budget_mib=text_budget_mib,
            share_prefixes=share_prefixes,
        )
        self.prompts: ClassPrompts = self._pack(backbone.model, tokens_PL)
        self._kept: tuple[Any, Tensor] | None = None  # what class_KD was made of, and class_KD
        self._holds = False
        backbone.requires_grad_(False)

    @property
    def class_count(self) -> int:
        """K."""
        return len(self.prompt_counts)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK for uint8 images."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains("vision")):
            image_BD = self.backbone.encode_image(images_BCHW)
        return self.logits(image_BD)

    def logits(self, image_BD: Tensor) -> Tensor:
        """Return logits_BK for unit-length embeddings of images, in float32, autocast or not."""
        logits_BK: Tensor = self.head(image_BD, self.classes)
        return logits_BK

    def classes(self) -> Tensor:
        """Return class_KD; while the text tower is open, made anew, and with its graph in training.

        Those of a frozen tower are made once, and again when its parameters have been loaded anew
        or moved. Outside of training they are float32 whatever autocast says. See `held_classes`.
        """
        trained = self.trains("text")
        if trained and torch.is_grad_enabled():
            return self._encode_classes()
        device, made_of = self.backbone.mean.device, self._text_versions()
        # Not every optimizer tells a parameter that it has written to it.
        keeps = self._holds or not trained
        if not keeps or self._kept is None or self._kept[0] != made_of:
            # Kept beyond the mode and the precision that this call runs in: training must find
            # neither a tensor of inference mode nor what an evaluation in bf16 has rounded.
            with torch.inference_mode(False), torch.no_grad(), exact(device):
                self._kept = made_of, self._encode_classes()
        return self._kept[1]

    @contextmanager
    def held_classes(self) -> Iterator[None]:
        """Let an evaluation encode the prompts once, also those of an open text tower."""
        if self.trains("text"):
            self.forget_classes()
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def forget_classes(self) -> None:
        """Let the prompts be encoded anew, after something but a parameter has been changed."""
        self._kept = None

    def _text_versions(self) -> Any:
        named = self.backbone.model.named_parameters()
        text = [value for name, value in named if tower_of(name) == "text"]
        return self.backbone.mean.device, [(id(value), value._version) for value in text]

    def use_prompts(self, tokens_PL: Tensor, apart: bool = False) -> None:
        """Put other prompts in the place of those it was made with, as many for each class.

        Args:
            apart: give each prompt rows of its own, for a text tower that draws random numbers.
        """
        self.tokens_PL = tokens_PL
        device = self.prompts.place_K.device
        self.prompts = self._pack(self.backbone.model, tokens_PL, apart=apart).to(device)
        self.forget_classes()

    @contextmanager
    def of_other_classes(
        self,
        tokens_PL: Tensor,
        templates: Sequence[str],
        rewrite: Callable[["Classifier", Tensor], Tensor] | None = None,
        prompts_per_class: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Tell other classes apart for a while, with the towers and the head as they have become.

        Args:
            tokens_PL: their prompts, tokenised, those of a class one after the other.
            templates: what the prompts were made from.
            rewrite: what an adapter makes of prompts; see Adapter.prompts_for.
            prompts_per_class: how many each class has; None: as many as there are templates.
        """
        held = ("tokens_PL", "templates", "prompt_counts", "prompts", "head", "_kept")
        before = {name: getattr(self, name) for name in held}
        self.templates = tuple(templates)
        self.prompt_counts = _counts(prompts_per_class or len(templates), len(tokens_PL))
        self.head = self.head.for_other_classes()
        try:
            self.use_prompts(tokens_PL if rewrite is None else rewrite(self, tokens_PL))
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def keep_prompts_apart(self) -> None:
        """Give each class's prompt rows of its own, for a text tower that draws random numbers."""
        self.use_prompts(self.tokens_PL, apart=True)

    def trains(self, tower: str) -> bool:
        """Whether any parameter of the tower is open."""
        return any(
            parameter.requires_grad and tower_of(name) == tower
            for name, parameter in self.backbone.model.named_parameters()
        )

    def named(self) -> dict[str, nn.Parameter]:
        """Return all parameters: the model's by their own names, the head's after "head."."""
        of_head = {f"head.{name}": value for name, value in self.head.named_parameters()}
        return dict(self.backbone.model.named_parameters()) | of_head

    def _encode_classes(self) -> Tensor:
        text_PD = self.backbone.encode_text(self.prompts)
        if max(self.prompt_counts) == 1:
            return text_PD
        return F.normalize(self.class_means(text_PD), dim=-1)

    def class_means(self, of_prompts_PX: Tensor) -> Tensor:
        """Return means_KX over each class's prompts."""
        counts = self.prompt_counts
        if min(counts) == max(counts):
            return of_prompts_PX.unflatten(0, (len(counts), -1)).mean(dim=1)
        sums_KX = _padded(of_prompts_PX, counts).sum(dim=1)
        return sums_KX / torch.tensor(counts, device=sums_KX.device).unsqueeze(1)


def _counts(prompts_per_class: int | Sequence[int], prompts: int) -> tuple[int, ...]:
    if isinstance(prompts_per_class, int):
        return (prompts_per_class,) * (prompts // prompts_per_class)
    assert sum(prompts_per_class) == prompts
    return tuple(prompts_per_class)


def _padded(rows_PX: Tensor, counts: Sequence[int]) -> Tensor:
    """Return rows_KPX with zeros where a class has fewer prompts than the one with most."""
    index_KP = torch.full((len(counts), max(counts)), len(rows_PX))
    there_KP = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    index_KP[there_KP] = torch.arange(len(rows_PX))
    return F.pad(rows_PX, (0, 0, 0, 1))[index_KP.to(rows_PX.device)]
