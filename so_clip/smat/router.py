"""The router: from a task's classes to the weights of the experts.

Tensor names end in their shape: N classes of a task, M experts, D embedding, L tokens.
"""

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import _disable_current_modes

from so_clip.clip.heads import exact
from so_clip.smat.options import SmatOptions

_HEADS, _MLP_RATIO = 4, 2.0
_FIRST_SKILLS = 1e-3  # standard deviation of the first skill tokens


class Router(nn.Module):
    """One transformer block over class tokens and learned skill tokens; no positions.

        tokens   class prototypes of the frozen encoder, projected class texts, skill tokens
        logit_m  key_m · (mean of the skill tokens' outputs)

    Without positions, and read at the skill tokens, it does not depend on the order of the classes.
    The linear layers have a spectral norm of 1, as in the released code.

    Args:
        dimensions: D.
        options: see SmatOptions.
        generator: of all first values; the global random state does not change.
    """

    def __init__(self, dimensions: int, options: SmatOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.options = options
        with torch.random.fork_rng([]):
            # timm's and torch's layers draw from the global state of the CPU only.
            with _disable_current_modes():  # a forecast has no values, and this one is needed
                seed = int(torch.randint(2**31, (), generator=generator))
            torch.default_generator.manual_seed(seed)
            heads = math.gcd(_HEADS, dimensions)
            self.block = Block(dimensions, heads, mlp_ratio=_MLP_RATIO, qkv_bias=False)
            for module in list(self.block.modules()):
                if isinstance(module, nn.Linear):
                    spectral_norm(module)
            self.text = nn.Linear(dimensions, dimensions) if options.text_tokens else None
        self.keys = nn.Parameter(torch.empty(options.experts, dimensions))
        self.skills = nn.Parameter(torch.empty(options.skill_tokens, dimensions))
        self.draw_keys(generator)

    @torch.no_grad()
    def draw_keys(self, generator: torch.Generator) -> None:
        """Draw the keys (Kaiming-normal) and the skill tokens."""
        nn.init.kaiming_normal_(self.keys, generator=generator)
        self.skills.normal_(0, _FIRST_SKILLS, generator=generator)
        is_trained = self.options.keys == "trained"
        self.keys.requires_grad_(is_trained)
        self.skills.requires_grad_(is_trained)

    def forward(self, prototype_ND: Tensor, class_ND: Tensor | None) -> Tensor:
        """Return logit_M.

        Args:
            prototype_ND: class means of the frozen encoder's embeddings of the few-shot images.
            class_ND: unit-length text embeddings of the classes; None for an encoder without text.
        """
        with exact(prototype_ND.device):
            tokens = [prototype_ND]
            if self.text is not None and class_ND is not None:
                tokens.append(self.text(class_ND))
            tokens_LD = torch.cat([*tokens, self.skills])
            output_LD = self.block(tokens_LD.unsqueeze(0)).squeeze(0)
            if self.options.task_embedding == "first_class":
                return self.keys @ output_LD[0]
            return self.keys @ output_LD[-len(self.skills) :].mean(dim=0)


def expert_weights(
    logit_M: Tensor, temperature: Tensor | float, generator: torch.Generator | None = None
) -> Tensor:
    """Return expert_M, weights in [0, 1] with sum 1.

    With a generator they are drawn from a relaxed Bernoulli distribution, then divided by their
    sum; without one they are sigmoid(logit / temperature), divided by their sum.

    Args:
        logit_M: of the router.
        temperature: a number, on any device; the lower, the nearer to 0 and 1.
        generator: on the CPU.

    Source: Maddison et al., The Concrete Distribution, arXiv 1611.00712.
    """
    if generator is not None:
        uniform_M = torch.rand(len(logit_M), generator=generator, dtype=torch.float64)
        noise_M = torch.logit(uniform_M, eps=1e-7).to(logit_M)
        logit_M = logit_M + noise_M
    score_M = torch.sigmoid(logit_M / temperature)
    return score_M / score_M.sum()
