"""ReLoRA: low-rank updates that are merged into the weights from time to time and begun anew."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.adapt.adapter import Support
from so_clip.adapt.peft_adapter import NAME, Peft, adapted_layers
from so_clip.checks import whole
from so_clip.clip.classifier import Classifier


class ReLoRA(Peft):
    """LoRA whose B A goes into the matrix every so many steps, so that ranks add up.

    Then A is drawn anew and B is zero, as at the start. The optimizer forgets what it remembers of
    both (the paper keeps up to a tenth of it), and the steps that follow are made shorter: k /
    `restart_warmup` of the k-th one. For optimizers whose steps grow with the lr in proportion
    that is the paper's jagged lr, which climbs back to the run's cosine after each restart.

    The paper's warm start, training of all weights before the first update, is left out: CLIP's
    weights are trained already. So is the warm-up of the very first steps.

    Args:
        patterns: see Peft.
        every: steps between two restarts, 1 or more.
        restart_warmup: shortened steps after a restart, fewer than `every`; 0: none.
        options: Peft's for kind=lora: rank, alpha, dropout, rank_stabilised, encoder, position,
            split_qkv, seed, interpolation. Below an interpolation of 1, the weights from before
            are kept on the host meanwhile.

    Source: arXiv 2307.05695; github Guitaricet/relora.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        every: int = 200,
        restart_warmup: int = 10,
        **options: Any,
    ) -> None:
        super().__init__("lora", patterns, **options)
        self.every = whole("adapter.every", every, 1)
        self.restart_warmup = whole("adapter.restart_warmup", restart_warmup, 0, every - 1)
        self._merged = False

    def start(self, classifier: Classifier, support: Support) -> None:
        """Keep the weights as they are now, if they are asked for at the end."""
        if self.interpolation < 1:
            for layer in adapted_layers(classifier):
                vars(layer)["before"] = {
                    name: value.detach().to("cpu", copy=True)
                    for name, value in layer.base_layer.named_parameters()
                }

    def zero_shot(self, layer: Any) -> dict[str, Tensor]:
        """Return what was kept, and keep it no longer."""
        before: dict[str, Tensor] = vars(layer).pop("before")
        return before

    def resume(self, classifier: Classifier) -> None:
        """Keep the weights from before no longer."""
        super().resume(classifier)
        for layer in adapted_layers(classifier):
            vars(layer).pop("before", None)

    @torch.no_grad()
    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Merge and begin anew where it is time; shorten the step soon after."""
        layers = adapted_layers(classifier)
        factors = [factor for layer in layers for factor in _factors(layer)]
        restarts, since = divmod(step, self.every)
        if since == 0:
            draws = torch.Generator().manual_seed(_seed(self.seed, step))
            for layer in layers:
                _merge(layer)
                _begin(layer, draws)
            self._merged = True
        elif restarts and since < self.restart_warmup:
            share = since / self.restart_warmup
            for factor in factors:
                factor.copy_(torch.lerp(vars(factor)["before"], factor, share))
        short = restarts and since + 1 < self.restart_warmup  # the next step
        for factor in factors:
            vars(factor).pop("before", None)
            if short:
                vars(factor)["before"] = factor.detach().clone()
        return factors if since == 0 else ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the weights that updates were merged into, and factors before a short step."""
        layers = adapted_layers(classifier)
        weights = [layer.base_layer.weight.detach() for layer in layers] if self._merged else []
        kept = [vars(factor).get("before") for layer in layers for factor in _factors(layer)]
        return {**super().training_state(classifier), "weights": weights, "before": kept}

    @torch.no_grad()
    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Go on with those."""
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


def _merge(layer: Any) -> None:
    layer.base_layer.weight.add_(layer.get_delta_weight(NAME))


def _begin(layer: Any, draws: torch.Generator) -> None:
    """Give A and B first values, as LoRA's and peft's."""
    down_RI, up_OR = _factors(layer)
    first_RI: Tensor = torch.empty(down_RI.shape)
    nn.init.kaiming_uniform_(first_RI, a=math.sqrt(5), generator=draws)
    down_RI.copy_(first_RI)
    up_OR.zero_()


def _seed(seed: int, step: int) -> int:
    return random.Random(f"{seed}:{step}").getrandbits(62)
