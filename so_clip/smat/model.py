"""The meta-learned state: experts, router and Lagrange multipliers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from so_clip.clip.roles import Part
from so_clip.errors import InputError
from so_clip.smat.experts import Experts
from so_clip.smat.options import SmatOptions
from so_clip.smat.router import Router, expert_weights


class Smat(nn.Module):
    """Experts over weights of an image tower, and the router that mixes them for a task.

    Args:
        parts: the weights of the image tower; see so_clip.clip.roles.
        dimensions: D, of the embeddings.
        options: see SmatOptions.
        seed: of the first values.
    """

    multiplier_M: Tensor  # the Lagrange multipliers, lambda
    temperature: Tensor  # of the expert weights, a number

    def __init__(
        self, parts: Sequence[Part], dimensions: int, options: SmatOptions, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.parts, self.dimensions = tuple(parts), dimensions
        self.options, self.seed = options, seed
        self.experts = Experts(parts, options, generator)
        self.router = Router(dimensions, options, generator)
        self.register_buffer("multiplier_M", torch.zeros(options.experts))
        self.register_buffer("temperature", torch.tensor(1.0))

    def expert_weights(self, prototype_ND: Tensor, class_ND: Tensor | None) -> Tensor:
        """Return expert_M for a task, without a draw; see Router and `expert_weights`."""
        return expert_weights(self.router(prototype_ND, class_ND), self.temperature)

    @torch.no_grad()
    def merge(
        self, model: nn.Module, prototype_ND: Tensor, class_ND: Tensor | None
    ) -> dict[str, Tensor]:
        """Return a task's weights: those of a model plus the experts that the router chooses.

        Args:
            model: the open_clip model with the weights before meta-training.
            prototype_ND, class_ND: see Router.

        Raises:
            InputError: the router's weights of the experts are not finite.
        """
        expert_M = self._test_weights(prototype_ND, class_ND)
        return self.experts.merged(self._base(model), expert_M, self.options.test_beta)

    @torch.no_grad()
    def merge_into(self, model: nn.Module, prototype_ND: Tensor, class_ND: Tensor | None) -> None:
        """Change a model's weights to a task's, as `merge` returns them.

        This state may be on the CPU and the model on a GPU: the router moves there for the call,
        and the experts one weight at a time.

        Args:
            model, prototype_ND, class_ND: see `merge`.
        """
        here, there = self.temperature.device, prototype_ND.device
        if here != there:
            self.router.to(there)
        expert_M = self._test_weights(prototype_ND, class_ND)
        if here != there:
            self.router.to(here)
        self.experts.merge_into(self._base(model), expert_M, self.options.test_beta)

    def _test_weights(self, prototype_ND: Tensor, class_ND: Tensor | None) -> Tensor:
        was_training = self.training
        self.eval()
        try:
            expert_M = self.expert_weights(prototype_ND, class_ND)
        finally:
            self.train(was_training)
        # A forecast runs on fake tensors, without values.
        if not isinstance(expert_M, FakeTensor) and not expert_M.isfinite().all():
            raise InputError(
                f"the router gives the experts the weights {expert_M.tolist()[:4]}, so no model "
                "can be made. Meta-train again with a smaller training.router_lr."
            )
        return expert_M

    def _base(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: model.get_parameter(name) for name in self.experts.names}
