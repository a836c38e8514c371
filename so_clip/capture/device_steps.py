"""The step of an optimizer in three parts, so that a CUDA graph can hold the middle one."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from so_clip.capture.eager import Eager


class DeviceSteps(Protocol):
    """An optimizer whose step is prepared and finished by the host, and taken by the device.

    Attributes:
        layout_version: grows when a tensor that `step_on_device` reads or writes may have moved.
    """

    layout_version: int

    def not_capturable(self) -> str | None:
        """Return why `step_on_device` differs from step to step; None if it does not."""
        ...

    def prepare_step(self) -> None:
        """Write this step's numbers, such as the learning rate, into tensors on the device.

        A second call before the step changes nothing.
        """
        ...

    def step_on_device(self) -> None:
        """Change the parameters, by operations on the device alone."""
        ...

    def finish_step(self) -> None:
        """Count the step on the host, and change on the device what is due."""
        ...

    def make_static(self) -> None:
        """Keep the addresses of all tensors of `step_on_device` from now on."""
        ...

    def step(self) -> Any:
        """Take a step: all three parts."""
        ...

    def forget(self, param: Tensor) -> None:
        """Give a parameter the state that it had before its first step."""
        ...


OTHER_OPTIMIZER = "Use optimizer=so, adamw, adam or sgd"


def device_steps(optimizer: Optimizer) -> "DeviceSteps | Eager":
    """Return the optimizer's step in three parts, or why it has none."""
    if hasattr(optimizer, "step_on_device"):
        found: Any = optimizer
        reason = found.not_capturable()
        return found if reason is None else Eager(reason, OTHER_OPTIMIZER)
    if isinstance(optimizer, (Adam, SGD)):
        return TorchSteps(optimizer)
    return Eager(
        f"the step of {type(optimizer).__name__} is not made for a CUDA graph",
        OTHER_OPTIMIZER,
    )


class TorchSteps:
    """The step of torch's Adam, AdamW or SGD in three parts.

    The learning rate of each group is a number on the host, where schedulers change it. Inside
    `step_on_device` it is a tensor. The arithmetic of an eager and a captured step is the same.

    Args:
        optimizer: may be a subclass that changes the gradients before its step.
    """

    def __init__(self, optimizer: Adam | SGD) -> None:
        self.optimizer, self.layout_version = optimizer, 0
        self._rates: list[Tensor] = []
        self._static_version = -1  # the layout that `make_static` has seen
        optimizer.register_load_state_dict_post_hook(self._loaded)

    def not_capturable(self) -> None:
        """Return None: a graph can hold the step."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self.optimizer.param_groups

    def prepare_step(self) -> None:
        """Write the learning rates into their tensors."""
        if self._static_version != self.layout_version:
            self.make_static()
        for rate, group in zip(self._rates, self.param_groups, strict=True):
            rate.fill_(float(group["lr"]))  # a kernel's argument: no copy that could be overtaken

    def step_on_device(self) -> None:
        """Call the optimizer's own step, with tensors in place of the learning rates."""
        before = [dict(group) for group in self.param_groups]
        try:
            for rate, group in zip(self._rates, self.param_groups, strict=True):
                group.update(self._on_device(group), lr=rate)
            self.optimizer.step()
        finally:
            for group, values in zip(self.param_groups, before, strict=True):
                group.update({key: values[key] for key in (*_CHANGED, "lr") if key in values})

    def finish_step(self) -> None:
        """Do nothing: torch's optimizers count steps on the device."""

    def make_static(self) -> None:
        """Put the learning rates and the numbers of steps on the device."""
        self._static_version = self.layout_version
        self._rates = [
            torch.zeros((), device=_first(group["params"]).device) for group in self.param_groups
        ]
        # True stops torch's warning about capturable=True in an eager step.
        self.optimizer._warned_capturable_if_run_uncaptured = True
        for group in self.param_groups:
            for param in group["params"]:
                self._complete_state(group, param)

    def step(self) -> Any:
        """Take a step: all three parts."""
        self.prepare_step()
        self.step_on_device()
        self.finish_step()

    def forget(self, param: Tensor) -> None:
        """Set a parameter's state to zero in place, as before its first step."""
        if any(group.get("dampening") for group in self.param_groups):
            # The first momentum is then the whole gradient.
            self.optimizer.state.pop(param, None)
            self.layout_version += 1
            return
        for value in self.optimizer.state.get(param, {}).values():
            if isinstance(value, Tensor):
                value.zero_()

    def _complete_state(self, group: dict[str, Any], param: Tensor) -> None:
        state = self.optimizer.state
        if isinstance(self.optimizer, Adam):
            if param in state and "step" in state[param]:
                step = torch.as_tensor(state[param]["step"], dtype=torch.float32)
                state[param]["step"] = step.to(param.device)
            return
        # torch's fused step needs the buffers of all tensors, or of none.
        is_new = state[param].get("momentum_buffer") is None if param in state else True
        if is_new and group["momentum"] and not group["dampening"] and param.requires_grad:
            state[param]["momentum_buffer"] = torch.zeros_like(param)

    def _on_device(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the options with which torch's step reads no tensor on the host."""
        if not isinstance(self.optimizer, Adam):
            return {"fused": True, "foreach": False}  # foreach reads the learning rate
        if _first(group["params"]).device.type == "cpu":
            return {"capturable": True, "fused": True, "foreach": False}
        return {"capturable": True}

    def _loaded(self, _: Optimizer) -> None:
        self.layout_version += 1


_CHANGED = ("capturable", "fused", "foreach")


def _first(tensors: Iterable[Tensor]) -> Tensor:
    return next(iter(tensors))
