"""The loop against a loop in numpy, and the ways in which training ends."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from so_clip.runtime.precision import Precision
from so_clip.train import READ_EVERY_STEPS, WATCHED_STEPS, History, Loop, TrainingDiverged, train
from tests.helpers.toy import CountReads, Given, Toy, random_batches

CPU = torch.device("cpu")


def _train(classifier: nn.Module, batches: Any, optimizer: Any = None, **changes: Any) -> History:
    lengths = {"max_steps": 60, "stop_loss": 0.0, "lr_min": 1e-6}
    lengths |= {
        name: changes.pop(name) for name in {*lengths, "restarts", "stop_on"} & changes.keys()
    }
    parts = {"precision": Precision("fp32", CPU), "peak_memory": nullcontext()} | changes
    optimizer = optimizer or torch.optim.SGD(classifier.parameters(), lr=1.0)
    return train(Loop(classifier, batches, optimizer, **parts), **lengths)


def _obvious_loop(
    batches: Given, max_steps: int, lr: float, lr_min: float
) -> tuple[list[float], list[float], np.ndarray]:
    """Softmax regression by gradient descent with a cosine rate, in float64, without torch."""
    weight_KP = np.zeros((3, 12))
    losses: list[float] = []
    lrs: list[float] = []
    while len(losses) < max_steps:
        for images_BCHW, labels_B in batches.batches:
            if len(losses) == max_steps:
                break
            now = lr_min + (lr - lr_min) * (1 + math.cos(math.pi * len(losses) / max_steps)) / 2
            pixels_BP = images_BCHW.flatten(1).double().numpy() / 255
            share_BK = np.exp(pixels_BP @ weight_KP.T)
            share_BK /= share_BK.sum(axis=1, keepdims=True)
            truth_BK = np.eye(3)[labels_B.numpy()]
            losses.append(float(-np.log((share_BK * truth_BK).sum(axis=1)).mean()))
            lrs.append(now)
            weight_KP -= now * (share_BK - truth_BK).T @ pixels_BP / len(labels_B)
    return losses, lrs, weight_KP


@pytest.mark.parametrize(
    ("sizes", "max_steps"), [([8], 30), ([8, 8, 3], 30), ([8, 8, 3], 2), ([4] * 7, 120), ([5], 1)]
)
def test_training_equals_a_plain_loop(sizes, max_steps):
    batches, toy = random_batches(sizes), Toy()
    history = _train(toy, batches, max_steps=max_steps)
    losses, lrs, weight_KP = _obvious_loop(batches, max_steps, lr=1.0, lr_min=1e-6)
    assert history.steps == len(history.losses) == len(history.lrs) == max_steps
    assert history.stop_reason == "max_steps"
    np.testing.assert_allclose(history.lrs, lrs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(history.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(toy.weight_KP.detach().numpy(), weight_KP, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.filterwarnings("error")
def test_the_loss_falls(precision):
    history = _train(Toy(), random_batches([16, 16]), precision=Precision(precision, CPU))
    assert history.losses[0] == pytest.approx(math.log(3), abs=1e-3)
    assert history.losses[-1] < 0.5 * history.losses[0]


@pytest.mark.filterwarnings("error")
def test_steps_that_the_fp16_scaler_skips_raise_no_warning():
    class Loud(Toy):
        def forward(self, images_BCHW):
            return 100 * super().forward(images_BCHW)

    loud, before = Loud(), Loud().weight_KP
    batches = random_batches([16, 16])
    history = _train(loud, batches, max_steps=1, precision=Precision("fp16", CPU))
    assert history.steps == 1
    assert torch.equal(loud.weight_KP, before), "no step was skipped: make it louder"
    history = _train(
        loud, batches, torch.optim.SGD(loud.parameters(), lr=1e-3), precision=Precision("fp16", CPU)
    )
    assert history.losses[-1] < history.losses[0]


def test_gradients_do_not_accumulate_across_steps():
    toy = Toy()
    _train(toy, random_batches([4, 4]), max_steps=3)
    assert toy.weight_KP.grad is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("restarts", [(5,), (3, 7)])
def test_each_restart_begins_a_cosine_that_ends_at_the_next(restarts: tuple[int, ...]) -> None:
    history = _train(Toy(), random_batches([8]), max_steps=12, lr_min=0.1, restarts=restarts)
    ends = [*restarts, 12]
    expected = [
        0.1 + 0.9 * (1 + math.cos(math.pi * step / (end - begin))) / 2
        for begin, end in zip([0, *ends], ends, strict=False)
        for step in range(end - begin)
    ]
    np.testing.assert_allclose(history.lrs, expected, rtol=1e-9)


def test_a_restart_at_the_end_or_after_it_changes_nothing() -> None:
    plain = _train(Toy(), random_batches([8]), max_steps=6)
    restarted = _train(Toy(), random_batches([8]), max_steps=6, restarts=(6, 9))
    assert plain.lrs == restarted.lrs


# pixel -> margin; the loss of label 0 among two classes is log(1 + exp(-margin)).
MARGINS = {0: 0.0, 1: 1.0, 2: 2.0, 3: 5.0, 4: 1000.0, 254: -math.inf, 255: math.nan}


def _loss(pixel: int) -> float:
    return math.log1p(math.exp(-MARGINS[pixel]))


class Scripted(nn.Module):
    """A classifier whose loss on label 0 depends on the image's first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.margins = torch.zeros(256)
        for pixel, margin in MARGINS.items():
            self.margins[pixel] = margin

    def forward(self, images_BCHW: Tensor) -> Tensor:
        margin_B = self.margins[images_BCHW[:, 0, 0, 0].int()]
        return torch.stack([margin_B, torch.zeros_like(margin_B)], 1) + 0 * self.unused


class ByEpoch:
    """Batches given as pixels: a list of epochs, each a list of batches; the last one repeats."""

    def __init__(self, *epochs: list[list[int]]) -> None:
        self.epochs = list(epochs)
        self.drawn = 0

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.drawn += 1
        for pixels in self.epochs[min(self.drawn, len(self.epochs)) - 1]:
            images_BCHW = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1)
            yield images_BCHW, torch.zeros(len(pixels), dtype=torch.int64)


@pytest.mark.parametrize(
    ("epochs", "stop_loss", "steps"),
    [
        # The loss falls below the limit in the third epoch.
        ([[[0], [0]], [[1], [1]], [[3], [3]], [[3], [3]]], 0.1, 6),
        # One batch is below the limit, but the epoch is not.
        ([[[0], [3]], [[3], [0]], [[3], [3]]], 0.1, 6),
        # Four images at 0.31 and one at 0.69: 0.39 an image, 0.50 a batch.
        ([[[1, 1, 1, 1], [0]], [[3], [3]]], 0.45, 2),
        # Four images at 0.69 and one at 0.31: 0.62 an image, 0.50 a batch.
        ([[[0, 0, 0, 0], [1]], [[3], [3]]], 0.55, 4),
        # Never: a loss equal to the limit is not below it, and 0 turns the limit off.
        ([[[0], [0]]], math.log(2) - 1e-6, 20),
        ([[[4], [4]]], 0.0, 20),
    ],
)
def test_training_stops_after_the_first_epoch_with_a_small_mean_loss(epochs, stop_loss, steps):
    history = _train(Scripted(), ByEpoch(*epochs), stop_loss=stop_loss, max_steps=20)
    assert history.steps == steps
    assert history.stop_reason == ("max_steps" if steps == 20 else "stop_loss")


@pytest.mark.parametrize(
    ("epochs", "stop_loss", "steps"),
    [
        # The second batch of the second epoch, although the epoch's mean is above the limit.
        ([[[0], [0]], [[0], [3], [0]]], 0.1, 4),
        ([[[3], [0]]], 0.1, 1),
        # The loss is the mean over the batch.
        ([[[0, 4], [0, 4, 4, 4], [4]]], 0.2, 2),
        # A loss equal to the limit ends training.
        ([[[4], [4]]], 1e-300, 1),
        # The last step counts too.
        ([[*[[0]] * 19, [3]]], 0.1, 20),
        # Never: all losses are above the limit, or the limit is off.
        ([[[0], [0]]], 0.69, 20),
        ([[[4], [4]]], 0.0, 20),
    ],
)
def test_training_stops_at_the_first_batch_with_a_small_loss(epochs, stop_loss, steps):
    options = {"stop_loss": stop_loss, "stop_on": "batch", "max_steps": 20}
    history = _train(Scripted(), ByEpoch(*epochs), **options)
    assert history.steps == steps
    ended = stop_loss > 0 and history.losses[-1] <= stop_loss
    assert history.stop_reason == ("stop_loss" if ended else "max_steps")
    assert all(loss > stop_loss for loss in history.losses[:-1]) or stop_loss == 0


def test_a_limit_on_batches_reads_the_loss_of_each_step():
    with CountReads() as reads:
        _train(Toy(), random_batches([2] * 5), max_steps=12, stop_loss=1e-9, stop_on="batch")
    assert reads == {"tolist": 12}


def test_the_history_holds_the_mean_loss_of_each_step():
    batches = ByEpoch([[0, 1, 2], [3]])
    history = _train(Scripted(), batches, max_steps=4)
    expected = [(_loss(0) + _loss(1) + _loss(2)) / 3, _loss(3)]
    assert history.losses == pytest.approx(2 * expected)


@pytest.mark.parametrize("pixel", [254, 255])
@pytest.mark.parametrize(
    ("epochs", "step"),
    [
        ([[[0], "bad"]], 2),
        ([[[0], [1]], [[2], "bad", [1]]], 4),
        # Long before the end of an epoch, the next read finds it.
        ([[*[[0]] * 59, "bad", *[[1]] * 1000]], 60),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_history(epochs, step, pixel):
    filled = [[[pixel] if batch == "bad" else batch for batch in epoch] for epoch in epochs]
    drawn: list[int] = []

    class Counted(ByEpoch):
        def epoch(self):
            for batch in super().epoch():
                drawn.append(1)
                yield batch

    with pytest.raises(TrainingDiverged) as caught:
        _train(Scripted(), Counted(*filled), max_steps=2000)
    history = caught.value.history
    assert history.steps == len(history.lrs) == step
    assert all(map(math.isfinite, history.losses[:-1]))
    assert not math.isfinite(history.losses[-1])
    became = {254: "inf", 255: "nan"}[pixel]
    lr = f"{history.lrs[-1]:.3g}"
    assert f"{became} at step {step} (lr {lr}, precision fp32)" in str(caught.value)
    assert "optimizer.lr" in str(caught.value)
    assert len(drawn) < step + READ_EVERY_STEPS


def test_in_half_precision_the_message_offers_fp32():
    batches = ByEpoch([[255]])
    with pytest.raises(TrainingDiverged, match=r"precision bf16.*precision=fp32"):
        _train(Scripted(), batches, precision=Precision("bf16", CPU))


@pytest.mark.parametrize("max_steps", [5, WATCHED_STEPS, 40])
def test_peak_memory_is_measured_over_the_first_steps_only(max_steps):
    seen: list[int] = []

    class Counted(Toy):
        steps = 0

        def forward(self, images_BCHW):
            self.steps += 1
            return super().forward(images_BCHW)

    toy = Counted()

    @contextmanager
    def watch() -> Iterator[None]:
        seen.append(toy.steps)
        yield
        seen.append(toy.steps)

    _train(toy, random_batches([2, 2, 2]), max_steps=max_steps, peak_memory=watch())
    assert seen == [0, min(max_steps, WATCHED_STEPS)]


@pytest.mark.parametrize(
    ("steps_an_epoch", "stop_loss", "reads_wanted"),
    [
        # Two reads in each of two epochs: after READ_EVERY_STEPS losses, and at the end.
        (READ_EVERY_STEPS + 10, 1e-9, 4),
        # Without stop_loss no epoch ends training, so its end needs no read.
        (READ_EVERY_STEPS + 10, 0.0, 3),
        (1, 0.0, 1),
    ],
)
def test_the_host_does_not_wait_for_every_step(steps_an_epoch, stop_loss, reads_wanted):
    batches = random_batches([2] * steps_an_epoch)
    max_steps = max(2 * steps_an_epoch - 1, 20)
    with CountReads() as reads:
        history = _train(Toy(), batches, max_steps=max_steps, stop_loss=stop_loss)
    assert reads == {"tolist": reads_wanted}
    assert history.steps == max_steps


def test_the_read_counter_sees_every_kind_of_read():
    with CountReads() as reads:
        value = torch.ones(1)
        value.item()
        value.tolist()
        float(value)
        bool(value)
    assert reads["item"] == reads["tolist"] == reads["__float__"] == reads["__bool__"] == 1
    assert reads["in C++"] >= 3


def test_a_penalty_is_minimised_but_not_recorded():
    free, held = Toy(), Toy()
    _train(free, random_batches([16]), max_steps=40)
    history = _train(
        held,
        random_batches([16]),
        max_steps=40,
        penalty=lambda: 0.1 * held.weight_KP.square().sum(),
    )
    assert held.weight_KP.norm() < 0.5 * free.weight_KP.norm()
    assert history.losses[0] == pytest.approx(math.log(3), abs=1e-3)


def test_the_optimizer_drops_the_state_of_restarted_tensors():
    toy, steps = Toy(), []
    optimizer = torch.optim.Adam(toy.parameters(), lr=1e-2)

    def after_step(step):
        steps.append((step, int(optimizer.state[toy.weight_KP]["step"])))
        return [toy.weight_KP] if step == 3 else []

    _train(toy, random_batches([4]), optimizer, max_steps=5, after_step=after_step)
    assert steps == [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)]
