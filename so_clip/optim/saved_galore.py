"""pytorch-optimizer's GaLore with a state that is made of tensors and numbers alone."""

from typing import Any

from pytorch_optimizer import GaLore
from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector
from torch import Tensor

_KEY = "projector"  # in the state of a tensor
_OPTIONS = ("rank", "update_proj_gap", "scale", "projection_type")


class SavedGaLore(GaLore):
    """A GaLore whose state can be written without pickling the library's own objects.

    A projector becomes what it holds beside the group's options, and is made anew on loading.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see torch.optim.Optimizer."""
        saved = super().state_dict()
        states = {
            key: {**state, _KEY: _opened(state[_KEY])} if _KEY in state else state
            for key, state in saved["state"].items()
        }
        return {**saved, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; see torch.optim.Optimizer."""
        states = {
            key: {name: value for name, value in state.items() if name != _KEY}
            for key, state in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": states})
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, key in zip(group["params"], saved_group["params"], strict=True):
                held = state_dict["state"].get(key, {}).get(_KEY)
                if held is not None:
                    projector = GaLoreProjector(**{name: group[name] for name in _OPTIONS})
                    matrices = tuple(matrix.to(param.device) for matrix in held["matrices"])
                    projector.ortho_matrix = matrices if len(matrices) > 1 else matrices[0]
                    projector.last_svd_step = held["last_svd_step"]
                    self.state[param][_KEY] = projector


def _opened(projector: Any) -> dict[str, Any]:
    held = projector.ortho_matrix
    matrices = [held] if isinstance(held, Tensor) else [*held]
    return {"matrices": matrices, "last_svd_step": projector.last_svd_step}
