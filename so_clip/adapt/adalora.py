"""AdaLoRA: ranks are taken from the matrices that need them least, by the library peft."""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.adapt.adapter import Support
from so_clip.adapt.peft_adapter import NAME, Peft, adapted_layers
from so_clip.checks import number, whole
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import exact
from so_clip.errors import InputError

# What peft's allocator remembers, each by tensor.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoRA(Peft):
    """Adds B diag(E) A alpha / rank to each matrix, and sets more and more of all E to zero.

    First all have `rank` of them, after the warm-up fewer and fewer on a cubic timetable, and
    `target_rank` on average from the last phase on. Those go whose gradients, smoothed, times
    values matter least. A B that is not orthogonal, or an A, is penalised.

    Of a step that a gradient scaler leaves out, gradients that are not finite count as zero.

    Args:
        patterns: see Peft.
        total_steps: that training takes, 2 or more; a run that stops before leaves ranks as they
            are then.
        warmup, final: the shares of these steps in which no rank is taken, at the beginning and at
            the end.
        options: Peft's for kind=adalora: rank, target_rank, alpha, dropout, interval (steps between
            two choices), orthogonality (weight of the penalty), beta1 and beta2 (of smoothing),
            encoder, position, split_qkv, seed, interpolation.

    Raises:
        InputError: an option is out of range, or target_rank is not below rank.

    Source: arXiv 2303.10512; github huggingface/peft, whose penalty is the mean norm, not squared.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        total_steps: int,
        warmup: float = 0.1,
        final: float = 0.5,
        **options: Any,
    ) -> None:
        whole("adapter.total_steps", total_steps, 2)
        for name, value in (("warmup", warmup), ("final", final)):
            if not 0 <= number(f"adapter.{name}", value) < 1:
                raise InputError(f"adapter.{name}={value}: must be in [0, 1).")
        if warmup + final >= 1:
            raise InputError(
                f"adapter.warmup={warmup}, adapter.final={final}: leave no steps between them. "
                "Let them be less than 1 together."
            )
        # Ranks can be chosen after the second step at the earliest.
        last_choice = max(2, total_steps - int(final * total_steps))
        timetable: dict[str, Any] = {
            "total_step": total_steps,
            "tfinal": total_steps - last_choice,
            "tinit": min(int(warmup * total_steps), last_choice - 1),
        }
        super().__init__("adalora", patterns, **options, **timetable)
        rank, target = options.get("rank", 12), options.get("target_rank", 8)
        if target >= rank:
            raise InputError(
                f"adapter.target_rank={target}: must be below adapter.rank={rank}. "
                "Ranks that stay as they are have kind=lora."
            )
        self._tuner: Any = None

    def wrap(self, library: ModuleType, model: Any, config: Any) -> Any:
        """Keep the tuner, which chooses ranks."""
        self._tuner = super().wrap(library, model, config)
        for name, value in model.named_parameters():
            if name.endswith(f".ranknum.{NAME}"):  # opened where weights are not in float32
                value.requires_grad_(False)
        return self._tuner

    def start(self, classifier: Classifier, support: Support) -> None:
        """Let gradients be at hand when a step is over, and the optimizer has let go of them."""
        for layer in adapted_layers(classifier):
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_hold)

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """Return the weighted mean of |A A^T - 1| and |B^T B - 1| over all A and B."""
        weight = self._tuner.peft_config[NAME].orth_reg_weight
        if not weight:
            return None
        with exact(classifier.backbone.mean.device):
            norms = [
                _distance_from_orthogonal(rows)
                for layer in adapted_layers(classifier)
                for rows in (layer.lora_A[NAME], layer.lora_B[NAME].T)
            ]
            return weight * torch.stack(norms).mean()

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Let peft learn how much each rank matters, and choose."""
        held = []
        for layer in adapted_layers(classifier):
            for parameter in layer.parameters():
                gradient = vars(parameter).pop("held", None)
                if gradient is not None:
                    parameter.grad = gradient.nan_to_num_(0, 0, 0)
                    held.append(parameter)
        self._tuner.update_and_allocate(step)
        for parameter in held:
            parameter.grad = None
        return ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return how much each entry matters, smoothed, and which ranks are left."""
        averages = {name: getattr(self._tuner.rankallocator, name) for name in _AVERAGES}
        ranks = self._tuner.peft_config[NAME].rank_pattern
        return {**super().training_state(classifier), "averages": averages, "ranks": ranks}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Go on with those."""
        super().load_training_state(classifier, state)
        device = classifier.backbone.mean.device
        for name, values in state["averages"].items():
            moved = {key: value.to(device) for key, value in values.items()}
            setattr(self._tuner.rankallocator, name, moved)
        self._tuner.peft_config[NAME].rank_pattern = state["ranks"]


def _hold(parameter: Tensor) -> None:
    # The tensor itself: a gradient scaler divides it by its scale only after the backward pass.
    vars(parameter)["held"] = parameter.grad


def _distance_from_orthogonal(rows_RD: Tensor) -> Tensor:
    one_RR = torch.eye(len(rows_RD), device=rows_RD.device, dtype=rows_RD.dtype)
    return torch.linalg.matrix_norm(rows_RD @ rows_RD.T - one_RR)
