"""Captured steps of a small classifier, emulated on the CPU, against eager ones."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip.capture.captured_step import WARM_UP_STEPS, CapturedStep
from so_clip.capture.device_steps import TorchSteps, device_steps
from so_clip.capture.eager import Eager
from so_clip.errors import InputError
from so_clip.optim.clipped_adamw import ClippedAdamW
from so_clip.runtime.precision import Precision
from so_clip.train import History, Loop, compute_gradients, train
from tests.helpers.captured_runs import NEVER
from tests.helpers.dispatched import Dispatched
from tests.helpers.emulated_graph import EmulatedRecorder, HiddenReplays, HostRead
from tests.helpers.toy import Toy, TwoLayers, random_batches

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
SIZES = [8, 8, 3]
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.1),
    "clipped": partial(ClippedAdamW, lr=0.1, max_norm=0.1),
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-3),
    "plain sgd": partial(torch.optim.SGD, lr=1.0),
    "damped sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.1),
}
AfterStep = Callable[[int], Iterable[Tensor]]


class Course:
    """A training of a toy: eager, or with captured steps."""

    def __init__(
        self,
        optimizer: str = "adamw",
        toy: nn.Module | None = None,
        *,
        steps: int = 40,
        recorder: Any = None,
        after_step: AfterStep = lambda step: (),
        **options: Any,
    ) -> None:
        self.toy = toy or Toy()
        made = OPTIMIZERS[optimizer](self.toy.parameters())
        self.recorder, self.captured = recorder, None
        if recorder is not None:
            gradients = partial(compute_gradients, self.toy, precision=FP32)
            parts = device_steps(made)
            assert not isinstance(parts, Eager)
            self.captured = CapturedStep(gradients, self.toy, made, parts, recorder, **options)
        loop = Loop(
            self.toy,
            random_batches(SIZES),
            made,
            FP32,
            nullcontext(),
            after_step=after_step,
            captured=self.captured,
        )
        self.history: History = train(loop, max_steps=steps, stop_loss=0.0, lr_min=1e-6)

    @property
    def weights(self) -> list[Tensor]:
        return [value.detach() for value in self.toy.parameters()]


def check_equal(captured: Course, eager: Course, exact: bool) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-4, "atol": 1e-5}
    assert captured.history.lrs == eager.history.lrs
    losses = [torch.tensor(course.history.losses) for course in (captured, eager)]
    torch.testing.assert_close(*losses, **tolerance)
    torch.testing.assert_close(captured.weights, eager.weights, **tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_equal_eager_ones(optimizer):
    """The run is longer than the ring of losses, and its last batches are smaller."""
    captured = Course(optimizer, steps=70, recorder=EmulatedRecorder(CPU))
    uncaptured = Course(optimizer, steps=70, recorder=EmulatedRecorder(CPU), warm_up_steps=NEVER)
    assert captured.captured.outcome == "captured"
    assert captured.recorder.recordings == 2
    assert uncaptured.recorder.recordings == 0
    check_equal(captured, uncaptured, exact=True)
    check_equal(captured, Course(optimizer, steps=70), exact=False)


def test_the_first_steps_and_shapes_that_are_new_are_eager():
    calls: list[int] = []

    class Counting(Toy):
        def forward(self, images_BCHW: Tensor) -> Tensor:
            calls.append(len(images_BCHW))
            return super().forward(images_BCHW)

    Course(toy=Counting(), steps=60, recorder=EmulatedRecorder(CPU))
    # Twelve eager steps are four epochs. Then each shape is recorded once.
    assert calls == [*SIZES * (WARM_UP_STEPS // 3), 8, 3]


def test_recording_computes_nothing():
    toy = Toy()
    before = toy.weight_KP.detach().clone()
    made = torch.optim.AdamW(toy.parameters(), lr=0.1)
    steps = TorchSteps(made)
    images_BCHW, labels_B = random_batches([4]).batches[0]
    steps.make_static()
    steps.prepare_step()

    def step() -> None:
        compute_gradients(toy, images_BCHW, labels_B, precision=FP32)
        steps.step_on_device()
        made.zero_grad(set_to_none=True)

    replay = EmulatedRecorder(CPU).record(step)
    assert torch.equal(toy.weight_KP, before)
    replay()
    assert not torch.equal(toy.weight_KP, before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_outside_of_the_graph_are_the_copies_and_the_rate(optimizer):
    toy = Toy()
    made = OPTIMIZERS[optimizer](toy.parameters())
    steps, recorder = device_steps(made), HiddenReplays(CPU)
    assert not isinstance(steps, Eager)
    gradients = partial(compute_gradients, toy, precision=FP32)
    captured = CapturedStep(gradients, toy, made, steps, recorder)
    batch = random_batches([4]).batches[0]
    for _ in range(WARM_UP_STEPS + 1):
        captured(*batch)
    with Dispatched() as dispatched:
        captured(*batch)
    assert recorder.recordings == 1
    assert dispatched.names == ["_foreach_copy_", "fill_.Scalar"]


def freeze_at(toy: nn.Module, *numbers: int) -> AfterStep:
    """Freeze or open one of two matrices after these steps."""

    def after_step(step: int) -> Iterable[Tensor]:
        if step in numbers:
            toy.first.weight.requires_grad_(not toy.first.weight.requires_grad)
        return ()

    return after_step


def test_opening_or_freezing_a_parameter_releases_the_recordings():
    deep, other = TwoLayers(), TwoLayers()
    captured = Course(toy=deep, recorder=EmulatedRecorder(CPU), after_step=freeze_at(deep, 15, 25))
    eager = Course(
        toy=other,
        recorder=EmulatedRecorder(CPU),
        after_step=freeze_at(other, 15, 25),
        warm_up_steps=NEVER,
    )
    assert captured.recorder.recordings == 6
    assert captured.captured.outcome == "captured"
    check_equal(captured, eager, exact=True)


def test_a_method_that_changes_the_step_too_often_stays_eager():
    deep, other, numbers = TwoLayers(), TwoLayers(), (13, 16, 19, 22)
    captured = Course(
        toy=deep, recorder=EmulatedRecorder(CPU), after_step=freeze_at(deep, *numbers)
    )
    assert captured.captured.outcome == ("eager: the method changed the step 4 times in 50 steps")
    check_equal(captured, Course(toy=other, after_step=freeze_at(other, *numbers)), exact=False)
    with pytest.raises(InputError, match="graph=true: the method changed the step 4 times"):
        Course(
            toy=(third := TwoLayers()),
            recorder=EmulatedRecorder(CPU),
            after_step=freeze_at(third, *numbers),
            demanded=True,
        )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "damped sgd"])
def test_dropped_state_begins_anew_as_without_a_graph(optimizer):
    def restarted(toy: nn.Module) -> AfterStep:
        return lambda step: [*toy.parameters()] if step in (14, 22) else ()

    courses = []
    for recorder in (EmulatedRecorder(CPU), None):
        toy = Toy()
        courses.append(
            Course(optimizer, toy, recorder=recorder, after_step=restarted(toy), steps=30)
        )
    assert courses[0].captured.outcome == "captured"
    check_equal(*courses, exact=False)


class Failing(EmulatedRecorder):
    """Fails in the middle of a step, as CUDA may."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        def half() -> None:
            function()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        return super().record(half)


def test_a_failed_capture_changes_nothing_and_training_goes_on(capsys):
    course = Course("sgd", recorder=Failing(CPU))
    reason = "the capture failed (operation not permitted when stream is capturing)"
    assert course.captured.outcome == f"eager: {reason}"
    assert capsys.readouterr().err.count(f"continues without a CUDA graph: {reason}") == 1
    check_equal(course, Course("sgd"), exact=False)
    with pytest.raises(InputError, match="graph=true: the capture failed"):
        Course(recorder=Failing(CPU), demanded=True)


READS = {
    "item": lambda image_BP: image_BP * image_BP.sum().item(),
    "if": lambda image_BP: image_BP if image_BP.sum() > 0 else -image_BP,
    "mask": lambda image_BP: torch.where(image_BP > 0, image_BP, 0) + image_BP[image_BP > 0].sum(),
    "nonzero": lambda image_BP: image_BP + len(image_BP.nonzero()),
    "cpu": lambda image_BP: image_BP + image_BP.cpu(),
    "new tensor": lambda image_BP: image_BP * torch.tensor([1.0] * 12),
}


@pytest.mark.parametrize("read", READS)
def test_the_emulation_refuses_what_a_cuda_graph_cannot_hold(read):
    class Reading(Toy):
        def forward(self, images_BCHW: Tensor) -> Tensor:
            return nn.functional.linear(READS[read](images_BCHW.flatten(1) / 255), self.weight_KP)

    with pytest.raises(HostRead, match=r" in train\.py:\d+ "):
        Course(toy=Reading(), recorder=EmulatedRecorder(CPU))


def test_the_emulation_freezes_numbers_and_addresses():
    """If each step reads a number or a tensor from Python, a replay gives other results."""

    class Fresh(Toy):
        factor = 0.0

        def forward(self, images_BCHW: Tensor) -> Tensor:
            self.factor += 1
            return super().forward(images_BCHW) * self.factor

    captured = Course(toy=Fresh(), recorder=EmulatedRecorder(CPU))
    eager = Course(toy=Fresh())
    assert captured.history.losses[:12] == pytest.approx(eager.history.losses[:12], rel=1e-4)
    assert captured.history.losses[20] != pytest.approx(eager.history.losses[20], rel=1e-2)
