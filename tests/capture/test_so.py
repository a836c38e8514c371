"""Captured steps of SO, emulated on the CPU, against eager ones."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.capture.captured_step import WARM_UP_STEPS, CapturedStep
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.runtime.precision import Precision
from so_clip.train import Loop, compute_gradients, train
from tests.helpers.dispatched import Dispatched
from tests.helpers.emulated_graph import EmulatedRecorder, HiddenReplays
from tests.helpers.toy import TwoLayers, random_batches

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released order": {"order": "update_first"},
    "ages": {"bias_correction": "age", "weight_decay": 0.1},
    "all moments": {"moment_selection": "dense"},
    "no moments": {"moment_selection": "none"},
    "dense": {"density_ratio": 1.0},
    "dense ages": {"density_ratio": 1.0, "bias_correction": "age"},
    "one support": {"T": 0},
}


class Course:
    """A training with SO: how it ended, and its supports after each step.

    With `half` it is under autocast, and the second matrix has another dtype than the first.
    """

    def __init__(
        self,
        captures: bool,
        *,
        samples: bool = False,
        packs: bool = False,
        half: bool = False,
        forgets: tuple[int, ...] = (),
        first_only: bool = False,
        steps: int = 30,
        **options: Any,
    ) -> None:
        model = TwoLayers()
        weights = [model.first.weight, model.last.weight]
        model.first.bias.requires_grad_(False)
        model.last.bias.requires_grad_(False)
        if half:
            model.last.to(torch.bfloat16)
        precision = Precision("bf16" if half else "fp32", CPU)
        optimizer = SO(weights, **{"lr": 0.05, "density_ratio": 0.3, "T": 5, **options})
        if packs:
            optimizer.pack(torch.bfloat16 if half else None)
        if samples:
            sampled_gradients(model, optimizer, always=True, whole=True)
        self.supports: list[list[Tensor | None]] = []
        self.recorder = EmulatedRecorder(CPU)

        def after_step(step: int) -> list[Tensor]:
            supports = [optimizer.support(weight) for weight in weights]
            self.supports.append([None if m is None else m.clone() for m in supports])
            return weights[: 1 if first_only else 2] if step in forgets else []

        captured = None
        if captures:
            gradients = partial(compute_gradients, model, precision=precision, caches_casts=False)
            captured = CapturedStep(gradients, model, optimizer, optimizer, self.recorder)
        loop = Loop(
            model,
            random_batches([8, 8, 3]),
            optimizer,
            precision,
            nullcontext(),
            after_step=after_step,
            captured=captured,
        )
        self.losses = train(loop, max_steps=steps, stop_loss=0.0, lr_min=1e-6).losses
        self.weights = [weight.detach() for weight in weights]
        self.outcome = captured.outcome if captured else ""


def check_equal(captured: Course, eager: Course) -> None:
    assert captured.outcome == "captured"
    assert captured.losses == eager.losses
    for mine, other in zip(captured.weights, eager.weights, strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(captured.supports, eager.supports, strict=True):
        for support_M, other_M in zip(mine, other, strict=True):
            assert (support_M is None) == (other_M is None)
            assert support_M is None or torch.equal(support_M, other_M)


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_steps_equal_plain_ones_bit_for_bit(variant, samples, packs):
    options = VARIANTS[variant]
    captured = Course(True, samples=samples, packs=packs, **options)
    assert captured.recorder.recordings == 2
    check_equal(captured, Course(False, samples=samples, packs=packs, **options))


def test_half_precision_copies_stay_right_where_weights_of_two_types_are_stepped_apart():
    captured = Course(True, samples=True, packs=True, half=True)
    assert captured.recorder.recordings == 2
    check_equal(captured, Course(False, samples=True, half=True))


def test_a_dropped_state_releases_the_recordings():
    captured, eager = (Course(captures, samples=True, forgets=(17,)) for captures in (True, False))
    assert captured.recorder.recordings == 4
    check_equal(captured, eager)


def test_a_reason_that_is_known_late_ends_capturing():
    """After one of two tensors was dropped, they have taken different numbers of steps."""
    captured, eager = (
        Course(captures, forgets=(8,), first_only=True) for captures in (True, False)
    )
    assert captured.outcome == "eager: tensors of one group have taken [4, 12] steps"
    assert captured.losses == eager.losses


def test_outside_of_the_graph_one_copy_has_the_numbers_of_a_step():
    model = TwoLayers()
    optimizer = SO([model.first.weight, model.last.weight], density_ratio=0.3, T=100)
    gradients = partial(compute_gradients, model, precision=FP32)
    recorder = HiddenReplays(CPU)
    captured = CapturedStep(gradients, model, optimizer, optimizer, recorder)
    batch = random_batches([4]).batches[0]
    for _ in range(WARM_UP_STEPS + 1):
        captured(*batch)
    with Dispatched() as dispatched:
        captured(*batch)
    assert recorder.recordings == 1
    assert dispatched.names == ["_foreach_copy_", "copy_"]
