"""CoOp and CoCoOp: learned vectors in place of the words before a class's name.

Sources: Learning to Prompt for Vision-Language Models, arXiv 2109.01134; Conditional Prompt
Learning for Vision-Language Models, arXiv 2203.05557; released code: github KaiyangZhou/CoOp.

Tensor names end in their shape: P prompts, L tokens, M vectors of the context, W width of the text
tower, B images, C images encoded together, K classes, D embedding.
"""

import math
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.lean_block import forwards
from so_clip.clip.engine.packed_text import TEXT_BUDGETS_MIB, ClassPrompts
from so_clip.clip.heads import Classes, Head, exact
from so_clip.clip.towers import text_tower
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.coop_prompts import (
    ContextEmbedding,
    context_embedding,
    embedding_owner,
    frozen_embedding,
    layout_of,
    split_at_names,
    with_context,
)
from so_clip.methods.options import above_zero, whole
from so_clip.methods.options import seed as checked_seed

AUTO = "auto"
COOP_LENGTH = 16
MAX_LENGTH = 1000  # more than any text tower reads; a typing error must not fill the memory
EVALUATED_PROMPTS = 1024  # CoCoOp's prompts that are encoded together in evaluation


class CoOp(Adapter):
    """Trains one context for all classes: M vectors before the class's name.

    The text after the name in the template stays. With template=plain a prompt is that of the
    released code: context, name, full stop. For ViT-B/16, 16 vectors are 8,192 parameters.

    Args:
        length: M; "auto" is 16, or fewer with a warning if the text tower has less room.
        words: text whose token embeddings are the first values, one vector per token; None for
            random first values.
        std: standard deviation of random first values, above 0.
        seed: of random first values; the global random state does not change.

    Raises:
        InputError: an option is out of range, or both `length` and `words` are given.
    """

    def __init__(
        self,
        length: int | str = AUTO,
        words: str | None = None,
        std: float = 0.02,
        seed: int = 0,
    ) -> None:
        if words is not None and (not isinstance(words, str) or not words.strip()):
            raise InputError(f"adapter.words={words!r}: must be words, or null for a random start.")
        if words is not None and length != AUTO:
            raise InputError(
                f"adapter.length={length}: adapter.words={words!r} sets the length. Leave one out."
            )
        self.length = length if length == AUTO else whole("length", length, 1, MAX_LENGTH)
        self.words, self.std = words, above_zero("std", std)
        self.seed = checked_seed(seed)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add the context to the token embedding. The prompts do not use it yet.

        Raises:
            InputError: the text tower or the template is unsuitable, or a prompt becomes too long.
        """
        frozen = frozen_embedding(classifier)
        prompts = split_at_names(classifier, classifier.tokens_PL)
        draws = torch.Generator().manual_seed(self.seed)
        context_MW = self._first_context(classifier, frozen, prompts, draws)
        with_context(classifier, prompts, len(context_MW))  # raises now, not in `start`
        embedding = ContextEmbedding(frozen, context_MW, self._meta_net(classifier, frozen, draws))
        owner, name = embedding_owner(text_tower(classifier.backbone.model))
        setattr(owner, name, embedding)
        added = {id(value) for name, value in embedding.named_parameters() if name != "weight"}
        return {name: value for name, value in classifier.named().items() if id(value) in added}

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Put the context into the prompts."""
        self._use_context(classifier)

    def resume(self, classifier: Classifier) -> None:
        """Put the loaded context into the prompts."""
        self._use_context(classifier)

    def prompts_for(self, classifier: Classifier, tokens_PL: Tensor) -> Tensor:
        """Return prompts of any classes with the context in place of the words before the name.

        Args:
            classifier: its template made the prompts.
            tokens_PL: tokenised prompts.

        Raises:
            InputError: a prompt becomes too long.
        """
        context_MW = context_embedding(classifier).context
        return with_context(classifier, split_at_names(classifier, tokens_PL), len(context_MW))

    def _use_context(self, classifier: Classifier) -> None:
        classifier.use_prompts(self.prompts_for(classifier, classifier.tokens_PL))

    def _first_context(
        self,
        classifier: Classifier,
        frozen: nn.Embedding,
        prompts: list[tuple[list[int], list[int]]],
        draws: torch.Generator,
    ) -> Tensor:
        backbone, weight = classifier.backbone, frozen.weight
        if self.words is not None:
            (prompt,) = backbone.tokenize([self.words]).tolist()
            ids = torch.tensor(layout_of(classifier).text_in(prompt), device=weight.device)
            with torch.no_grad():
                return frozen(ids).clone()
        length = self.length
        if isinstance(length, str):
            room = layout_of(classifier).room - max(len(rest) for _, rest in prompts)
            length = max(1, min(COOP_LENGTH, room))
            if length < COOP_LENGTH:
                warnings.warn(
                    f"the context has {length} vectors in place of CoOp's {COOP_LENGTH}: the text "
                    f"encoder reads {backbone.context_length} tokens.",
                    stacklevel=3,
                )
        context_MW = torch.empty(length, frozen.embedding_dim).normal_(
            std=self.std, generator=draws
        )
        return context_MW.to(weight.device, weight.dtype)

    def _meta_net(
        self, classifier: Classifier, frozen: nn.Embedding, draws: torch.Generator
    ) -> nn.Module | None:
        return None


class CoCoOp(CoOp):
    """Trains a context, and a small network (the meta-net) that shifts it for each image.

    Linear(D, D / reduction) - ReLU - Linear(D / reduction, W) turns the image's unit-length
    embedding into one shift. It is added to every vector of the context. For ViT-B/16 and four
    words, these are 35,360 parameters.

    Each image has its own class embeddings, so B images need B times as many prompts, in training
    and in evaluation.

    Args:
        words, length, std: see CoOp.
        reduction: the meta-net's inner width is D / reduction.
        seed: of the meta-net, and of random first values of the context.
    """

    def __init__(
        self,
        words: str | None = "a photo of a",
        length: int | str = AUTO,
        std: float = 0.02,
        reduction: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(length, words, std, seed)
        self.reduction = whole("reduction", reduction, 1)

    def _use_context(self, classifier: Classifier) -> None:
        """Put the context into the prompts, and let each image shift it."""
        super()._use_context(classifier)
        classifier.head = ConditionalHead(classifier)

    def _meta_net(
        self, classifier: Classifier, frozen: nn.Embedding, draws: torch.Generator
    ) -> nn.Module | None:
        wide, weight = classifier.backbone.dimensions, frozen.weight
        narrow = max(1, wide // self.reduction)
        net = nn.Sequential(
            _linear(wide, narrow, draws), nn.ReLU(), _linear(narrow, frozen.embedding_dim, draws)
        )
        return net.to(weight.device, weight.dtype)


class ConditionalHead(Head):
    """CoCoOp's logits: scaled cosines of each image with the class embeddings of its context.

    The prompts of several images are packed as one set. In training this bounds their memory, as
    for other methods. In evaluation it gives fewer and larger steps.

    Args:
        classifier: gives the current prompts and text tower. It is not a submodule, because the
            head is a submodule of it.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.backbone.logit_scale)
        self._classifier = (classifier,)  # a tuple: it must not become a submodule
        self._read_prompts()  # now: in a forecast, tensors have no values later

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK."""
        (classifier,) = self._classifier
        meta_net = context_embedding(classifier).meta_net
        assert meta_net is not None
        trains, device = torch.is_grad_enabled(), image_BD.device
        size = len(image_BD) if trains else max(1, EVALUATED_PROMPTS // classifier.class_count)
        with exact(device):
            shift_BW = meta_net(image_BD)
        parts = []
        for image_CD, shift_CW in zip(image_BD.split(size), shift_BW.split(size), strict=True):
            # The precision in which Classifier.classes encodes the prompts of other methods.
            with nullcontext() if trains else exact(device):
                class_CKD = self._class_embeddings(shift_CW, trains)
            with exact(device):
                parts.append(self.scale * torch.einsum("cd,ckd->ck", image_CD, class_CKD))
        return torch.cat(parts)

    def _class_embeddings(self, shift_CW: Tensor, trains: bool) -> Tensor:
        (classifier,) = self._classifier
        embedding = context_embedding(classifier)
        context_CMW = embedding.context + shift_CW.unsqueeze(1)
        shifted = _ShiftedText(classifier.backbone.model, embedding, context_CMW.flatten(0, 1))
        text_PD = self._prompts(len(shift_CW), trains)(shifted, classifier.backbone.memory)
        text_PD = text_PD.to(torch.promote_types(text_PD.dtype, torch.float32))
        return F.normalize(text_PD, dim=-1).unflatten(0, (len(shift_CW), -1))

    def _read_prompts(self) -> None:
        (classifier,) = self._classifier
        self._tokens_KL = classifier.tokens_PL
        self._packed: dict[tuple[int, bool], ClassPrompts] = {}  # (images, trains)

    def _prompts(self, images: int, trains: bool) -> ClassPrompts:
        """Return the packed prompts of `images` images. Each image's context has its own ids."""
        (classifier,) = self._classifier
        if self._tokens_KL is not classifier.tokens_PL:
            self._read_prompts()
        if (images, trains) not in self._packed:
            length = len(context_embedding(classifier).context)
            budget_mib = classifier.text_budget_mib if trains else TEXT_BUDGETS_MIB["fast"]
            # Packing reads the tokens' values, also in a forecast, where new tensors have none.
            with _disable_current_modes():
                prompts = torch.cat(
                    [
                        torch.where(
                            self._tokens_KL < 0, self._tokens_KL - image * length, self._tokens_KL
                        )
                        for image in range(images)
                    ]
                )
                packed = ClassPrompts(classifier.backbone.model, prompts, budget_mib)
            self._packed[images, trains] = packed.to(classifier.prompts.place_K.device)
        return self._packed[images, trains]


class _ShiftedText:
    """A model whose text tower has another context.

    The model itself does not change outside of a call: the backward pass may encode the prompts
    again, after another batch.

    Args:
        model: with a ContextEmbedding.
        embedding: this embedding.
        context_MW: the vectors of the ids -1 to -M.
    """

    def __init__(self, model: Any, embedding: ContextEmbedding, context_MW: Tensor) -> None:
        self._model, self._text = model, text_tower(model)
        self._embedding = embedding
        self.token_embedding = partial(embedding.forward, context_MW=context_MW)

    def encode_text(self, tokens_PL: Tensor) -> Tensor:
        """Return the model's own text_PD, with this context."""
        with forwards({self._embedding: self.token_embedding}):
            text_PD: Tensor = self._model.encode_text(tokens_PL)
        return text_PD

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)


def _linear(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    """Return a linear layer with torch's default initialisation, drawn from `draws`."""
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.uniform_(-bound, bound, generator=draws)
    return linear
