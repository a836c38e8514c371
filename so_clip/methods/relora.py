"""ReLoRA: low-rank updates that are merged into the weights at intervals, then restarted."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.methods.adapter import FewShots
from so_clip.methods.options import whole
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_layers import NAME, adapted_layers, frozen_tensors


class ReLoRA(Peft):
    """LoRA that merges B A into the matrix every `every` steps, so that the ranks add up.

    After a merge, A is drawn again and B is zero, as at the start. The optimizer resets its state
    for both (the paper keeps up to a tenth of it). The k-th step after a restart is scaled by
    k / `restart_warmup`. For optimizers whose step is proportional to the learning rate, this is
    the paper's jagged schedule: it returns to the run's cosine after each restart.

    Deviations from the paper: the warm start (training of all weights before the first update) is
    left out, since CLIP is trained already. There is no warm-up at the first steps.

    Args:
        roles: see Peft.
        every: steps between two restarts, 1 or more.
        restart_warmup: number of scaled steps after a restart, below `every`; 0 for none.
        options: Peft's for kind=lora: rank, alpha, dropout, rank_stabilised, encoder, position,
            split_qkv, seed, interpolation. Below interpolation=1, the host keeps a copy of the
            original weights in training.

    Raises:
        InputError: an option is out of range.

    Source: arXiv 2307.05695; github Guitaricet/relora.
    """

    def __init__(
        self,
        roles: Sequence[str],
        every: int = 200,
        restart_warmup: int = 10,
        **options: Any,
    ) -> None:
        super().__init__("lora", roles, **options)
        self.every = whole("every", every, 1)
        self.restart_warmup = whole("restart_warmup", restart_warmup, 0, every - 1)
        self._merged = False

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Copy the original weights if `finish` needs them."""
        if self.interpolation < 1:
            for layer in adapted_layers(classifier):
                vars(layer)["before"] = {
                    name: value.detach().to("cpu", copy=True)
                    for name, value in layer.base_layer.named_parameters()
                }

    def zero_shot_weights(self, layer: Any) -> dict[str, Tensor]:
        """Return the copies of the original weights, and delete them from the layer."""
        before: dict[str, Tensor] = vars(layer).pop("before")
        return before

    def rewritten(self, classifier: Classifier) -> dict[str, Tensor]:
        """Return the matrices into which the restarts merge the updates."""
        return frozen_tensors(classifier, ["weight"])

    @torch.no_grad()
    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Restart every `every` steps, and scale the steps after a restart."""
        layers = adapted_layers(classifier)
        factors = [factor for layer in layers for factor in _factors(layer)]
        restarts, since = divmod(step, self.every)
        if since == 0:
            restart_seed = random.Random(f"{self.seed}:{step}").getrandbits(62)
            draws = torch.Generator().manual_seed(restart_seed)
            for layer in layers:
                layer.base_layer.weight.add_(layer.get_delta_weight(NAME))
                _restart(layer, draws)
            self._merged = True
        elif restarts and since < self.restart_warmup:
            share = since / self.restart_warmup
            for factor in factors:
                factor.copy_(torch.lerp(vars(factor)["before"], factor, share))
        scales_next_step = restarts and since + 1 < self.restart_warmup
        for factor in factors:
            vars(factor).pop("before", None)
            if scales_next_step:
                vars(factor)["before"] = factor.detach().clone()
        return factors if since == 0 else ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the weights after a merge, and the factors from before a scaled step."""
        layers = adapted_layers(classifier)
        weights = [layer.base_layer.weight.detach() for layer in layers] if self._merged else []
        before = [vars(factor).get("before") for layer in layers for factor in _factors(layer)]
        return {**super().training_state(classifier), "weights": weights, "before": before}

    @torch.no_grad()
    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_training_state(classifier, state)
        layers = adapted_layers(classifier)
        self._merged = bool(state["weights"])
        if self._merged:
            for layer, weight in zip(layers, state["weights"], strict=True):
                layer.base_layer.weight.copy_(weight)
        factors = [factor for layer in layers for factor in _factors(layer)]
        for factor, before in zip(factors, state["before"], strict=True):
            if before is not None:
                vars(factor)["before"] = before.to(factor.device)


def _factors(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight


def _restart(layer: Any, draws: torch.Generator) -> None:
    """Give A and B the first values that LoRA and peft give them."""
    down_RI, up_OR = _factors(layer)
    first_RI: Tensor = torch.empty(down_RI.shape)
    nn.init.kaiming_uniform_(first_RI, a=math.sqrt(5), generator=draws)
    down_RI.copy_(first_RI)
    up_OR.zero_()
