"""Training steps that are captured once for each batch shape, and then replayed.

Tensor names end in their shape: B images.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from so_clip.capture.device_steps import OTHER_OPTIMIZER, DeviceSteps
from so_clip.capture.eager import Eager
from so_clip.clip.engine.random_recompute import without_random_states
from so_clip.errors import InputError, note

# Eager steps before the first capture: libraries choose their kernels in them, and optimizers make
# their states.
WARM_UP_STEPS = 12
# Eager steps after a change of what a step computes or where its tensors are.
STEPS_AFTER_CHANGE = 2
# A shape is captured after this many eager steps.
STEPS_OF_SHAPE = 2
# Training stays eager after more than MOST_CHANGES changes of the step in CHANGE_WINDOW steps.
MOST_CHANGES, CHANGE_WINDOW = 3, 50
# A loss must be read before this many more steps are taken.
LOSSES_KEPT = 50

Gradients = Callable[[Tensor, Tensor], Tensor]
Replay = Callable[[], None]


class Recorder(Protocol):
    """Records a function's operations and repeats them; see CudaRecorder."""

    def training(self) -> AbstractContextManager[None]:
        """Return a context for all training steps."""
        ...

    def record(self, function: Callable[[], None]) -> Replay:
        """Record a function without computing anything; return its replay."""
        ...

    def release(self) -> None:
        """Free all recordings."""
        ...


@dataclass(frozen=True)
class _Batch:
    """The tensors that a recorded step reads, and its replay."""

    images_BCHW: Tensor
    labels_B: Tensor
    replay: Replay


class CapturedStep:
    """Takes training steps. The first are eager; then each batch shape has a recording.

    A recording holds forward pass, loss, backward pass and optimizer step. It is released when a
    tensor moves or a parameter is frozen or opened, and made again after two eager steps.

    Args:
        gradients: computes the gradients of (images_BCHW, labels_B); returns the loss. It must not
            use autocast's cache of cast weights: a replay would find old entries in it.
        model: its parameters and buffers are read by `gradients`.
        optimizer: of the parameters.
        steps: the optimizer's step in parts; see device_steps.
        recorder: see CudaRecorder.
        other_parts: returns further objects that must stay the same between replays.
        demanded: whether the user demands a graph. An error then ends the training where it would
            otherwise continue eagerly.
        warm_up_steps: eager steps before the first capture.
    """

    def __init__(
        self,
        gradients: Gradients,
        model: nn.Module,
        optimizer: Optimizer,
        steps: DeviceSteps,
        recorder: Recorder,
        *,
        other_parts: Callable[[], tuple[Any, ...]] = tuple,
        demanded: bool = False,
        warm_up_steps: int = WARM_UP_STEPS,
    ) -> None:
        self._gradients, self._model = gradients, model
        self._optimizer, self._steps, self._recorder = optimizer, steps, recorder
        self._other_parts, self._demanded = other_parts, demanded
        self._warm_up_steps = self._eager_left = warm_up_steps
        self._taken = 0
        self._seen: Counter[torch.Size] = Counter()
        self._batches: dict[torch.Size, _Batch] = {}
        self._changes: list[int] = []  # numbers of the steps before which something changed
        self._layout: _Layout | None = None
        self._refusal: Eager | None = None
        self._captures = 0
        self._losses = _Losses()

    @property
    def outcome(self) -> str:
        """How steps are taken, for metrics.json: captured, or eager with the reason."""
        if self._refusal is not None:
            return self._refusal.outcome
        return "captured" if self._captures else "eager: training ended before the first capture"

    @property
    def is_settled(self) -> bool:
        """Whether the first capture is over, or is not to be expected."""
        late = self._taken >= 2 * self._warm_up_steps
        return bool(self._captures) or self._refusal is not None or late

    @contextmanager
    def training(self) -> Iterator[None]:
        """Return the context of all steps. At its end the recordings are released."""
        with self._recorder.training():
            try:
                yield
            finally:
                self._release()

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Take one step; return its loss, on the device. See LOSSES_KEPT."""
        shape = images_BCHW.shape
        self._check_layout()
        batch = self._batches.get(shape)
        if batch is None and self._eager_left <= 0 and self._seen[shape] >= STEPS_OF_SHAPE:
            batch = self._record(images_BCHW, labels_B)
        self._taken += 1
        self._seen[shape] += 1
        if batch is not None:
            return self._replay(batch, images_BCHW, labels_B)
        self._eager_left -= 1
        loss = self._gradients(images_BCHW, labels_B)
        self._steps.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def forget(self, parameter: Tensor) -> None:
        """Drop the optimizer's state of a parameter."""
        self._steps.forget(parameter)

    def _replay(self, batch: _Batch, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        static = [batch.images_BCHW, batch.labels_B]
        torch._foreach_copy_(static, [images_BCHW, labels_B], non_blocking=True)
        self._steps.prepare_step()
        batch.replay()
        self._steps.finish_step()
        return self._losses.last()

    def _record(self, images_BCHW: Tensor, labels_B: Tensor) -> _Batch | None:
        """Record a step for this shape; None if it cannot be recorded. Nothing is computed."""
        reason = self._steps.not_capturable()
        if reason is not None:
            self._give_up(Eager(reason, OTHER_OPTIMIZER))
            return None
        static_BCHW, static_B = images_BCHW.clone(), labels_B.clone()
        self._losses.place(labels_B.device)
        self._steps.prepare_step()

        def step() -> None:
            with without_random_states():
                loss = self._gradients(static_BCHW, static_B)
            self._steps.step_on_device()
            self._optimizer.zero_grad(set_to_none=True)
            self._losses.add(loss)

        try:
            replay = self._recorder.record(step)
        except RuntimeError as error:
            self._optimizer.zero_grad(set_to_none=True)
            reason = f"the capture failed ({_first_reason(error)})"
            self._give_up(Eager(reason, "Report this as a bug"))
            note(f"training continues without a CUDA graph: {reason}.")
            return None
        self._captures += 1
        self._batches[images_BCHW.shape] = batch = _Batch(static_BCHW, static_B, replay)
        return batch

    def _check_layout(self) -> None:
        """Release the recordings if a tensor has moved, or other ones are trained."""
        if self._refusal is not None:
            return
        if self._layout is None:
            self._make_static()
        elif self._layout.holds(self._steps.layout_version, self._other_parts()):
            return
        else:
            self._release()
            self._make_static()
            self._eager_left = max(self._eager_left, STEPS_AFTER_CHANGE)
            self._changes.append(self._taken)
            recent = [step for step in self._changes if step > self._taken - CHANGE_WINDOW]
            if len(recent) > MOST_CHANGES:
                self._give_up(
                    Eager(
                        f"the method changed the step {len(recent)} times in {CHANGE_WINDOW} steps",
                        "Let it change less often",
                    )
                )
                return
        self._layout = _Layout(self._model, self._steps.layout_version, self._other_parts())

    def _make_static(self) -> None:
        # A reason that is known only later is found before a recording.
        if self._steps.not_capturable() is None:
            self._steps.make_static()

    def _give_up(self, reason: Eager) -> None:
        """Take eager steps from now on; raise InputError if the user demands a graph."""
        self._release()
        self._refusal, self._eager_left = reason, 1 << 60
        if self._demanded:
            raise InputError(reason.refusal())

    def _release(self) -> None:
        self._batches.clear()
        self._recorder.release()


def _first_reason(error: BaseException) -> str:
    """Return the first line of the error that made a capture fail; the last one follows from it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return str(error).strip().partition("\n")[0]


class _Layout:
    """The addresses of a model's tensors, and which of them are trained."""

    def __init__(self, model: nn.Module, version: int, other_parts: tuple[Any, ...]) -> None:
        self._model, self._version, self._others = model, version, other_parts
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._state = self._state_now()

    def holds(self, version: int, other_parts: tuple[Any, ...]) -> bool:
        """Return whether all addresses and all trained tensors are the same as before."""
        same = [mine is other for mine, other in zip(self._others, other_parts, strict=True)]
        return all(same) and version == self._version and self._state == self._state_now()

    def _state_now(self) -> list[Any]:
        placed = [(tensor.data_ptr(), tensor.requires_grad) for tensor in self._tensors]
        return [self._model.training, placed]


class _Losses:
    """The losses of the last replays, on the device. Each has its own place until it is read."""

    def __init__(self) -> None:
        self._loss_L: Tensor | None = None
        self._next_1: Tensor | None = None  # the next place, known to the device
        self._next = 0  # the same, known to the host

    def place(self, device: torch.device) -> None:
        """Make the tensors; call it before the first recording."""
        if self._loss_L is None:
            self._loss_L = torch.zeros(LOSSES_KEPT, device=device)
            self._next_1 = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor) -> None:
        """Write a loss, as an operation of a recording."""
        assert self._loss_L is not None
        assert self._next_1 is not None
        self._loss_L.index_copy_(0, self._next_1, loss.view(1))
        self._next_1.add_(1).remainder_(LOSSES_KEPT)

    def last(self) -> Tensor:
        """Return the loss of the replay that was just made."""
        assert self._loss_L is not None
        loss = self._loss_L[self._next]
        self._next = (self._next + 1) % LOSSES_KEPT
        return loss
