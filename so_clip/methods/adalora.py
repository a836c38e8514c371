"""AdaLoRA: low-rank updates that lose their least important ranks, by the library peft."""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import exact
from so_clip.errors import InputError
from so_clip.methods.adapter import FewShots, LowRankUpdate
from so_clip.methods.options import share_below_one, whole
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_layers import NAME, adapted_layers, low_rank_updates

# The state of peft's rank allocator: dicts from a tensor's name to its average.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoRA(Peft):
    """Adds B diag(E) A alpha / rank to each frozen matrix; training sets entries of E to zero.

    Each E starts with `rank` entries. After the warm-up their number falls on a cubic schedule, to
    `target_rank` on average from the beginning of the final phase. The entries with the lowest
    importance (smoothed products of gradient and value) become zero. A penalty keeps A and B
    orthogonal.

    If a gradient scaler skips a step, that step's non-finite gradients count as zero.

    Args:
        roles: see Peft.
        total_steps: of training, 2 or more. A run that stops earlier keeps its current ranks.
        warmup, final: shares of the steps, at the beginning and at the end, in which no rank
            changes. Each is in [0, 1), and so is their sum.
        options: Peft's for kind=adalora: rank, target_rank, alpha, dropout, interval (steps between
            two choices of ranks), orthogonality (weight of the penalty), beta1 and beta2 (of
            smoothing), encoder, position, split_qkv, seed, interpolation.

    Raises:
        InputError: an option is out of range, or target_rank is not below rank.

    Source: arXiv 2303.10512; github huggingface/peft. Like peft's, the penalty is the mean norm,
    not its square.
    """

    def __init__(
        self,
        roles: Sequence[str],
        total_steps: int,
        warmup: float = 0.1,
        final: float = 0.5,
        **options: Any,
    ) -> None:
        whole("total_steps", total_steps, 2)
        if share_below_one("warmup", warmup) + share_below_one("final", final) >= 1:
            raise InputError(
                f"adapter.warmup={warmup}, adapter.final={final}: leave no steps between them. "
                "Their sum must be below 1."
            )
        # peft can choose ranks after the second step at the earliest.
        last_choice = max(2, total_steps - int(final * total_steps))
        schedule: dict[str, Any] = {
            "total_step": total_steps,
            "tfinal": total_steps - last_choice,
            "tinit": min(int(warmup * total_steps), last_choice - 1),
        }
        super().__init__("adalora", roles, **options, **schedule)
        rank, target = options.get("rank", 12), options.get("target_rank", 8)
        if target >= rank:
            raise InputError(
                f"adapter.target_rank={target}: must be below adapter.rank={rank}. "
                "For constant ranks use kind=lora."
            )
        self._tuner: Any = None

    def wrap(self, library: ModuleType, model: Any, config: Any) -> Any:
        """Wrap the layers, and keep the tuner: it chooses ranks later."""
        self._tuner = super().wrap(library, model, config)
        for name, value in model.named_parameters():
            if name.endswith(f".ranknum.{NAME}"):  # peft opens it if weights are not float32
                value.requires_grad_(False)
        return self._tuner

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Save gradients for `after_step`: the optimizer deletes them at the end of the step."""
        for layer in adapted_layers(classifier):
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_save_gradient)

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """Return orthogonality · the mean of |A A^T - 1| and |B^T B - 1| over all A and B."""
        weight = self._tuner.peft_config[NAME].orth_reg_weight
        if not weight:
            return None
        with exact(classifier.backbone.device):
            norms = [
                _distance_from_orthogonal(rows)
                for layer in adapted_layers(classifier)
                for rows in (layer.lora_A[NAME], layer.lora_B[NAME].T)
            ]
            return weight * torch.stack(norms).mean()

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Update the importance of each rank, and choose ranks if the schedule says so."""
        parameters = []
        for layer in adapted_layers(classifier):
            for parameter in layer.parameters():
                gradient = vars(parameter).get("saved_gradient")
                if gradient is not None:
                    parameter.grad = gradient.nan_to_num_(0, 0, 0)
                    parameters.append(parameter)
        self._tuner.update_and_allocate(step)
        for parameter in parameters:
            parameter.grad = None
        return ()

    def low_rank_updates(self, classifier: Classifier) -> list[LowRankUpdate]:
        """Return the updates with their E, if `finish` does not merge them."""
        if self.interpolation < 1:
            return []
        return low_rank_updates(
            classifier,
            down=f"lora_A.{NAME}",
            up=f"lora_B.{NAME}",
            diagonal=f"lora_E.{NAME}",
            scale=_scale,
        )

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the smoothed importance of each entry, and the remaining ranks."""
        averages = {name: getattr(self._tuner.rankallocator, name) for name in _AVERAGES}
        ranks = self._tuner.peft_config[NAME].rank_pattern
        return {**super().training_state(classifier), "averages": averages, "ranks": ranks}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_training_state(classifier, state)
        device = classifier.backbone.device
        for name, values in state["averages"].items():
            moved = {key: value.to(device) for key, value in values.items()}
            setattr(self._tuner.rankallocator, name, moved)
        self._tuner.peft_config[NAME].rank_pattern = state["ranks"]


def _scale(layer: Any) -> float:
    # peft divides by the number of ranks at the start, plus a small number.
    return layer.scaling[NAME] / (layer.ranknum[NAME].item() + 1e-5)


def _save_gradient(parameter: Tensor) -> None:
    """Move the gradient to the same place in every step, where `after_step` finds it.

    Autograd makes a new tensor in each step, and a CUDA graph reuses its memory. The gradient moves
    before a gradient scaler divides it.
    """
    saved = vars(parameter).setdefault("saved_gradient", torch.empty_like(parameter))
    saved.copy_(parameter.grad)
    parameter.grad = saved


def _distance_from_orthogonal(rows_RD: Tensor) -> Tensor:
    identity_RR = torch.eye(len(rows_RD), device=rows_RD.device, dtype=rows_RD.dtype)
    return torch.linalg.matrix_norm(rows_RD @ rows_RD.T - identity_RR)
