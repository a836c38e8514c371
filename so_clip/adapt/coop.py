"""CoOp and CoCoOp: learned vectors in place of the words before a class's name.

Sources: Learning to Prompt for Vision-Language Models, arXiv 2109.01134; Conditional Prompt
Learning for Vision-Language Models, arXiv 2203.05557; released code: github KaiyangZhou/CoOp.

Tensor names end in their shape: P prompts, L tokens, M vectors of the context, W width of the text
tower, D embedding.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.adapt.cocoop_head import ConditionalHead
from so_clip.adapt.coop_prompts import (
    REFUSAL,
    ContextEmbedding,
    context_embedding,
    prompts_by_name,
    rewritten,
    text_tower,
    to_end,
)
from so_clip.checks import number, whole
from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError

AUTO = "auto"
COOP_LENGTH = 16
MAX_LENGTH = 1000  # beyond any text tower's; a slip of the key must not fill the memory


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
        text = text_tower(classifier)
        frozen = getattr(text, "token_embedding", None)
        if type(frozen) is not nn.Embedding:
            raise InputError(REFUSAL.format(classifier.backbone.description))
        prompts = prompts_by_name(classifier, classifier.tokens_PL)
        draws = torch.Generator().manual_seed(self.seed)
        context_MW = self._starting_values(classifier, frozen, prompts, draws)
        rewritten(classifier, prompts, len(context_MW))  # refuses now what `start` could not use
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
        context_MW = context_embedding(classifier).context
        return rewritten(classifier, prompts_by_name(classifier, tokens_PL), len(context_MW))

    def _starting_values(
        self,
        classifier: Classifier,
        frozen: nn.Embedding,
        prompts: list[tuple[list[int], list[int]]],
        draws: torch.Generator,
    ) -> Tensor:
        backbone, weight = classifier.backbone, frozen.weight
        if self.words is not None:
            (whole_prompt,) = to_end(classifier, backbone.tokenize([self.words]))
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


def _linear(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    """Make a Linear as torch would, but for drawing from `draws`."""
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.uniform_(-bound, bound, generator=draws)
    return linear
