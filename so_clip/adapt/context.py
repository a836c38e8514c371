"""CoOp and CoCoOp: learned vectors in place of the words before a class's name.

Sources: Learning to Prompt for Vision-Language Models, arXiv 2109.01134; Conditional Prompt
Learning for Vision-Language Models, arXiv 2203.05557; released code: github KaiyangZhou/CoOp.

Learned vectors are tokens of their own here, with negative ids: no tokenizer gives them, and none
is the largest of a prompt, by which CLIP knows its end. So prompts stay tokens, and what they have
in common is computed once.

Tensor names end in their shape: P prompts, L tokens, N any tokens, M vectors of the context, W
width of the text tower, B images, K classes, D embedding.
"""

import math
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.clip.packed_text import TEXT_BUDGETS_MIB, ClassPrompts, prompts_to_end
from so_clip.errors import InputError
from so_clip.values import number, whole

AUTO = "auto"
COOP_LENGTH = 16
MAX_LENGTH = 1000  # beyond any text tower's; a slip of the key must not fill the memory
PROMPTS_AT_ONCE = 1024  # of how many images' classes, in evaluation


class CoOp(Adapter):
    """Trains one context for all classes: M vectors that stand before the class's name.

    What the template has after the name stays: with template=plain a prompt is the released code's,
    the context, the name and a full stop. For ViT-B/16, 16 vectors are 8,192 parameters.

    Args:
        length: M; "auto" is 16, or as many as the text tower has room for, with a warning.
        words: begin as the embeddings of these words, one vector a token; None: begin at random.
        std: standard deviation of a random start, above 0.
        seed: of a random start; the global random state is left alone.
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
                f"adapter.length={length}: adapter.words={words!r} has its own. Leave one out."
            )
        self.length = length if length == AUTO else whole("adapter.length", length, 1, MAX_LENGTH)
        self.words, self.std = words, number("adapter.std", std)
        if self.std <= 0:
            raise InputError(f"adapter.std={std}: must be above 0.")
        self.seed = whole("adapter.seed", seed, 0, 2**63 - 1)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add the context to the token embedding, where no prompt has it yet.

        Raises:
            InputError: the text tower or the template does not do, or a prompt gets too long.
        """
        text = _text_tower(classifier)
        frozen = getattr(text, "token_embedding", None)
        if type(frozen) is not nn.Embedding:
            raise InputError(_REFUSAL.format(classifier.backbone.description))
        prompts = _prompts_by_name(classifier, classifier.tokens_PL)
        draws = torch.Generator().manual_seed(self.seed)
        context_MW = self._starting_values(classifier, frozen, prompts, draws)
        _rewritten(classifier, prompts, len(context_MW))  # refuses now what `start` could not use
        added = ContextEmbedding(frozen, context_MW, self._meta_net(classifier, frozen, draws))
        text.token_embedding = added
        own = {id(value) for name, value in added.named_parameters() if name != "weight"}
        return {name: value for name, value in classifier.named().items() if id(value) in own}

    def start(self, classifier: Classifier, support: Support) -> None:
        """Put the context into the prompts."""
        classifier.use_prompts(self.prompts_for(classifier, classifier.tokens_PL))

    def prompts_for(self, classifier: Classifier, tokens_PL: Tensor) -> Tensor:
        """Return prompts of any classes with the context in place of the words before the name.

        Args:
            tokens_PL: made from the classifier's template.

        Raises:
            InputError: a prompt gets too long.
        """
        context_MW = _context_embedding(classifier).context
        return _rewritten(classifier, _prompts_by_name(classifier, tokens_PL), len(context_MW))

    def _starting_values(
        self,
        classifier: Classifier,
        frozen: nn.Embedding,
        prompts: list[tuple[list[int], list[int]]],
        draws: torch.Generator,
    ) -> Tensor:
        backbone, weight = classifier.backbone, frozen.weight
        if self.words is not None:
            (whole_prompt,) = _to_end(classifier, backbone.tokenize([self.words]))
            ids = torch.tensor(whole_prompt[1:-1], device=weight.device)
            return F.embedding(ids, weight.detach()).clone()
        length = self.length
        if isinstance(length, str):
            room = backbone.context_length - 1 - max(len(rest) for _, rest in prompts)
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
    """Trains a context that is shifted by what a small network, the meta-net, makes of each image.

    All vectors of the context are shifted alike, by Linear(D, D / reduction) - ReLU - Linear(.., W)
    of the image's unit-length embedding. For ViT-B/16 and four words, 35,360 parameters.

    Class embeddings belong to an image, so that B images have B times as many prompts, in training
    and in evaluation.

    Args:
        words, length, std, seed: see CoOp; the seed is the meta-net's too.
        reduction: the meta-net's inner width is D / reduction.
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
        self.reduction = whole("adapter.reduction", reduction, 1)

    def start(self, classifier: Classifier, support: Support) -> None:
        """Put the context into the prompts, and let every image shift it."""
        super().start(classifier, support)
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


class ContextEmbedding(nn.Embedding):
    """A token embedding as it was, and learned vectors for the ids -1 to -M.

    Args:
        frozen: its weight is taken over, not copied, and keeps its name.
        context_MW: starting values.
        meta_net: image_BD -> what is added to the context for each image; None: nothing is.
    """

    def __init__(
        self, frozen: nn.Embedding, context_MW: Tensor, meta_net: nn.Module | None = None
    ) -> None:
        super().__init__(frozen.num_embeddings, frozen.embedding_dim, device="meta")
        self.weight = frozen.weight
        self.context = nn.Parameter(context_MW)
        self.meta_net = meta_net

    def forward(self, tokens_N: Tensor, context_MW: Tensor | None = None) -> Tensor:
        """Return vectors [..., W] for ids [...], the context's or those that take its place."""
        context_MW = self.context if context_MW is None else context_MW
        learned_NW = F.embedding((-1 - tokens_N).clamp(min=0), context_MW)
        known_NW = F.embedding(tokens_N.clamp(min=0), self.weight)
        return torch.where((tokens_N < 0).unsqueeze(-1), learned_NW, known_NW)


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
        meta_net = _context_embedding(classifier).meta_net
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
        text, embedding = _text_tower(classifier), _context_embedding(classifier)
        context_CMW = embedding.context + shift_CW.unsqueeze(1)
        # Not set on the model: prompts may be encoded again, in the backward pass.
        shifted = _Shifted(text, partial(embedding, context_MW=context_CMW.flatten(0, 1)))
        text_PD = self._prompts(len(shift_CW), learns)(shifted, classifier.backbone.memory)
        text_PD = text_PD.to(torch.promote_types(text_PD.dtype, torch.float32))
        return F.normalize(text_PD, dim=-1).unflatten(0, (len(shift_CW), -1))

    def _take_prompts(self) -> None:
        (classifier,) = self._owner
        self._tokens_KL = classifier.tokens_PL
        self._of_one = [_without_padding(prompt) for prompt in self._tokens_KL.tolist()]
        self._packed: dict[tuple[int, bool], ClassPrompts] = {}  # by images, and whether it learns

    def _prompts(self, images: int, learns: bool) -> ClassPrompts:
        """Return the prompts of so many images, the context of each with ids of its own."""
        (classifier,) = self._owner
        if self._tokens_KL is not classifier.tokens_PL:
            self._take_prompts()
        if (images, learns) not in self._packed:
            length = len(_context_embedding(classifier).context)
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


def _text_tower(classifier: Classifier) -> Any:
    model = classifier.backbone.model
    return getattr(model, "text", model)


def _context_embedding(classifier: Classifier) -> ContextEmbedding:
    embedding = _text_tower(classifier).token_embedding
    assert isinstance(embedding, ContextEmbedding)
    return embedding


def _to_end(classifier: Classifier, tokens_PL: Tensor) -> list[list[int]]:
    prompts = prompts_to_end(classifier.backbone.model, tokens_PL)
    if prompts is None:
        raise InputError(_REFUSAL.format(classifier.backbone.description))
    return prompts


def _prompts_by_name(
    classifier: Classifier, tokens_PL: Tensor
) -> list[tuple[list[int], list[int]]]:
    """Return of each prompt what stands before the class's name, and what begins with it.

    What stands before it is what the template has there: what prompts have in common may be longer.
    """
    if classifier.prompts_per_class != 1:
        raise InputError(
            f"template=ensemble: a class has {classifier.prompts_per_class} prompts here, and a "
            "context is learned for one. Take template=plain or template=specific."
        )
    (template,) = classifier.templates
    before = classifier.backbone.tokenize([template.partition("{}")[0]])
    opening = _to_end(classifier, before)[0][:-1]
    prompts = []
    for prompt in _to_end(classifier, tokens_PL):
        if prompt[: len(opening)] != opening:
            raise InputError(
                f"template={template!r}: what stands before {{}} runs into the name in "
                f"{classifier.backbone.text_of(prompt[1:-1])!r}. End it with a space."
            )
        prompts.append((opening, prompt[len(opening) :]))
    return prompts


def _rewritten(
    classifier: Classifier, prompts: list[tuple[list[int], list[int]]], length: int
) -> Tensor:
    """Return tokens_PL with so many learned vectors after the start token, then the names."""
    backbone = classifier.backbone
    tokens_PL = torch.zeros(len(prompts), backbone.context_length, dtype=torch.int64)
    for tokens_L, (opening, rest) in zip(tokens_PL, prompts, strict=True):
        prompt = [opening[0], *range(-1, -1 - length, -1), *rest]
        if len(prompt) > len(tokens_L):
            raise InputError(
                f"{length} learned vectors and {backbone.text_of(rest[:-1])!r} take {len(prompt)} "
                f"tokens, but the text encoder reads {len(tokens_L)}. Shorten the class name, or "
                "take fewer vectors by adapter.length= or adapter.words=."
            )
        tokens_L[: len(prompt)] = torch.tensor(prompt)
    return tokens_PL


def _without_padding(prompt: list[int]) -> list[int]:
    """Return a prompt up to its end token, which is the last that is not 0."""
    last = max(place for place, token in enumerate(prompt) if token)
    return prompt[: last + 1]


def _linear(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    """Make a Linear as torch would, but for drawing from `draws`."""
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.uniform_(-bound, bound, generator=draws)
    return linear


_REFUSAL = (
    "the text encoder of {} cannot be given learned vectors, or has them already: it must be "
    "open_clip's own, read at the end token. Take one such as backbone=vit_b16."
)
