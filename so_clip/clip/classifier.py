"""A CLIP backbone and a dataset's class prompts as one module: images in, logits out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.adaptable import AdaptableModel
from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.packed_text import TEXT_BUDGETS_MIB, ClassPrompts
from so_clip.clip.heads import Classes, CosineHead, Head, exact
from so_clip.clip.towers import Tower, tower_of


class Classifier(AdaptableModel):
    """logits_BK = head(image_BD, class_KD) + bias; the default head has the towers' scaled cosines.

        class_k = normalize(mean of the text embeddings of class k's prompts)
        logits_bk = logit_scale · image_b · class_k + logit_bias

    A tower without trainable parameters runs without a graph. A text tower without trainable
    parameters encodes the prompts only once. Classes may have different numbers of prompts.

    Args:
        backbone: the CLIP model. All its parameters are frozen here; an adapter opens some.
        tokens_PL: token ids of P prompts, class by class; see Backbone.prompt_tokens. Without a
            text tower, `classes` raises an InputError, and an adapter must bring its own head.
        text_budget_mib: MiB of activations that prompts may keep in training; see ClassPrompts.
            None: the default for the backbone's `memory`.
        share_prefixes: whether prompts share the rows of common prefixes; see ClassPrompts.
        prompts_per_class: P / K, or the number of prompts of each class.
        templates: the templates of the prompts, for adapters that rewrite them; empty if each class
            has its own descriptions.

    Attributes:
        head: the Head; an adapter may replace it.

    Example:
        >>> backbone = load_backbone("ViT-B-16", pretrained="openai")
        >>> classifier = Classifier(backbone, backbone.tokenize(["a photo of a cat.", "a dog."]))
        >>> logits_BK = classifier(images_BCHW)  # uint8 pixels, 224 x 224
    """

    backbone: Backbone

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
        self._cached: tuple[Any, Tensor] | None = None  # versions of the text weights, and class_KD
        self._padding: tuple[Any, Tensor, Tensor] | None = None  # see class_means
        self._cached_trained = False  # whether the cache is that of a trained tower
        self._holds_classes = False
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
        """Return logits_BK for unit-length image embeddings, in float32 even under autocast.

        They are in float16 if the backbone has half weights.
        """
        classes: Classes = self.classes
        if self.backbone.half_weights:
            image_BD, classes = image_BD.half(), lambda: self.classes().half()
        logits_BK: Tensor = self.head(image_BD, classes)
        bias = self.backbone.logit_bias
        return logits_BK + bias if bias else logits_BK

    def classes(self) -> Tensor:
        """Return class_KD. If the text tower is trained, each call encodes the prompts again.

        A frozen tower encodes them once, and again after its parameters were loaded or moved.
        Without a graph, class_KD is float32 even under autocast, unless the backbone has half
        weights. See `held_classes`.
        """
        trained = self.trains("text")
        if trained and torch.is_grad_enabled():
            return self._encode_classes()
        device, versions = self.backbone.mean.device, self.versions("text")
        # Some optimizers do not raise a parameter's version, so a trained tower is not cached.
        may_cache = self._holds_classes or not trained
        if not may_cache or self._cached is None or self._cached[0] != versions:
            # The cache outlives the mode and precision of this call: training must get neither a
            # tensor of inference mode nor values that an evaluation in bf16 rounded.
            precision = exact(device)
            if self.backbone.half_weights:
                precision = torch.autocast(device.type, torch.float16)
            with torch.inference_mode(False), torch.no_grad(), precision:
                self._cached = versions, self._encode_classes()
            self._cached_trained = trained
        return self._cached[1]

    @contextmanager
    def held_classes(self) -> Iterator[None]:
        """Encode the prompts only once in this context, even if the text tower is trained."""
        if self.trains("text"):
            self.forget_classes()
        self._holds_classes = True
        try:
            yield
        finally:
            self._holds_classes = False

    def forget_classes(self) -> None:
        """Drop the cached class_KD; call it after a change to anything but a parameter."""
        self._cached = None

    def parts(self) -> tuple[Any, ...]:
        """Return the objects, beside parameters and buffers, that a training step may read."""
        # An evaluation encodes the classes of a trained tower, and no training step reads them.
        frozen = self._cached is not None and not self._cached_trained
        return self.head, self.prompts, self._cached if frozen else None

    def not_capturable(self) -> str | None:
        """Return why no CUDA graph can hold a training step of this model; None if one can."""
        from open_clip.hf_model import HFTextEncoder

        text = getattr(self.backbone.model, "text", None)
        if isinstance(text, HFTextEncoder) and self.trains("text"):
            return "Hugging Face's text tower reads its mask on the host in each step"
        return None

    def versions(self, tower: Tower) -> Any:
        """Return a value that changes with a tower's device, parameters, and writes to these.

        Some optimizers change a parameter but not its version, so the value does not show the steps
        of a trained tower.
        """
        named = self.backbone.model.named_parameters()
        values = [value for name, value in named if tower_of(name) == tower]
        return self.backbone.mean.device, [(id(value), value._version) for value in values]

    def use_prompts(self, tokens_PL: Tensor, separate: bool = False) -> None:
        """Replace the prompts by others, with the same number for each class.

        Args:
            tokens_PL: token ids of the prompts, class by class.
            separate: share no prefixes between prompts, for a text tower that draws random numbers.
        """
        self.tokens_PL = tokens_PL
        device = self.prompts.place_K.device
        self.prompts = self._pack(self.backbone.model, tokens_PL, separate=separate).to(device)
        self.forget_classes()

    @contextmanager
    def using_classes(
        self,
        tokens_PL: Tensor,
        templates: Sequence[str],
        rewrite: Callable[["Classifier", Tensor], Tensor] | None = None,
        prompts_per_class: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Classify other classes in this context, with the current towers and head.

        Args:
            tokens_PL: token ids of their prompts, class by class.
            templates: the templates of the prompts.
            rewrite: an adapter's function that rewrites prompts; see Adapter.prompts_for.
            prompts_per_class: the number of prompts of each class; None: one for each template.
        """
        before = {name: getattr(self, name) for name in _OF_CLASSES}
        try:
            self.use_classes(tokens_PL, templates, rewrite, prompts_per_class)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def use_classes(
        self,
        tokens_PL: Tensor,
        templates: Sequence[str],
        rewrite: Callable[["Classifier", Tensor], Tensor] | None = None,
        prompts_per_class: Sequence[int] | None = None,
    ) -> None:
        """Classify other classes from now on; the arguments are those of `using_classes`."""
        self.templates = tuple(templates)
        self.prompt_counts = _counts(prompts_per_class or len(templates), len(tokens_PL))
        self.head = self.head.for_other_classes()
        self.use_prompts(tokens_PL if rewrite is None else rewrite(self, tokens_PL))

    def separate_prompts(self) -> None:
        """Share no prefixes between prompts, for a text tower that draws random numbers."""
        self.use_prompts(self.tokens_PL, separate=True)

    def trains(self, tower: str) -> bool:
        """Return whether any parameter of the tower is trainable."""
        return any(
            parameter.requires_grad and tower_of(name) == tower
            for name, parameter in self.backbone.model.named_parameters()
        )

    def named(self) -> dict[str, nn.Parameter]:
        """Return all parameters by name: the model's names, and "head." + the head's names."""
        head = {f"head.{name}": value for name, value in self.head.named_parameters()}
        return dict(self.backbone.model.named_parameters()) | head

    def _encode_classes(self) -> Tensor:
        text_PD = self.backbone.encode_text(self.prompts)
        if max(self.prompt_counts) == 1:
            return text_PD
        return F.normalize(self.class_means(text_PD), dim=-1)

    def class_means(self, values_PX: Tensor) -> Tensor:
        """Return means_KX over each class's prompts."""
        counts = self.prompt_counts
        if min(counts) == max(counts):
            return values_PX.unflatten(0, (len(counts), -1)).mean(dim=1)
        index_KP, count_K1 = self._places(values_PX.device)
        return F.pad(values_PX, (0, 0, 0, 1))[index_KP].sum(dim=1) / count_K1

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the places of each class's prompts, padded with P, and their counts.

        They are made once for a device: a captured training step cannot copy from the host.
        """
        key = self.prompt_counts, device
        if self._padding is None or self._padding[0] != key:
            index_KP, count_K = _padded(self.prompt_counts)
            self._padding = key, index_KP.to(device), count_K.to(device).unsqueeze(1)
        return self._padding[1:]


# Attributes of a Classifier that change with its classes.
_OF_CLASSES = (
    "tokens_PL",
    "templates",
    "prompt_counts",
    "prompts",
    "head",
    "_cached",
    "_cached_trained",
    "_padding",
)


def _counts(prompts_per_class: int | Sequence[int], prompts: int) -> tuple[int, ...]:
    if isinstance(prompts_per_class, int):
        return (prompts_per_class,) * (prompts // prompts_per_class)
    assert sum(prompts_per_class) == prompts
    return tuple(prompts_per_class)


def _padded(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the places of each class's prompts among all, padded with P, and the counts."""
    count_K, prompts = torch.tensor(counts), sum(counts)
    index_KP = torch.full((len(counts), max(counts)), prompts)
    index_KP[torch.arange(max(counts)) < count_K.unsqueeze(1)] = torch.arange(prompts)
    return index_KP, count_K
