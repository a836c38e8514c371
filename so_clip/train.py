"""The training loop: images in, loss, backward, step. It knows no method and no dataset."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, SequentialLR
from tqdm import tqdm

from so_clip.capture.captured_step import LOSSES_KEPT, WARM_UP_STEPS, CapturedStep
from so_clip.checkpoint import NoCheckpoint
from so_clip.errors import RunFailed
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.runtime.precision import Precision

# Losses stay on the device, so that a step does not wait for the host. They are read this often, so
# that a loss that is not finite is found soon, and at the end of an epoch that may be the last.
READ_EVERY_STEPS = LOSSES_KEPT
# Peak memory is measured over the first steps, and the first capture of a CUDA graph after them. At
# the default T of 10 they include a new support.
WATCHED_STEPS = WARM_UP_STEPS
NO_CHECKPOINT = NoCheckpoint()

Penalty = Callable[[], Tensor | None]
AfterStep = Callable[[int], Iterable[Tensor]]
Report = Callable[[int, float | None], None]


class Batches(Protocol):
    """Training batches, shuffled and augmented again for every epoch."""

    def epoch(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (images_BCHW uint8, labels_B int64) on the device."""
        ...


@dataclass
class History:
    """Loss and learning rate of each step, and why training ended: max_steps or stop_loss."""

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    stop_reason: str = "max_steps"

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)


class TrainingDiverged(RunFailed):
    """A loss is not finite. `history` holds the steps up to and including that one."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class Loop:
    """The objects and callbacks of a training.

    Attributes:
        classifier: images_BCHW uint8 -> logits_BK.
        batches: see Batches.
        optimizer: of the parameters that change. The cosine starts at its lr.
        precision: autocast and gradient scaling.
        peak_memory: entered around the first WATCHED_STEPS steps, and the first capture.
        penalty: added to the cross-entropy, but not to the losses in the history; None: nothing.
        after_step: called with the number of steps taken. The optimizer drops its state of the
            tensors that it returns.
        report: called with the number of steps taken and the last loss that was read, or None.
        checkpoint: restores an earlier training and saves this one.
        ranks: the processes that take each step together. All must have the same objects.
        captured: takes the steps in place of `train_step`. `train_step` is not called then.
        shows_bar: whether to show a progress bar.
    """

    classifier: nn.Module
    batches: Batches
    optimizer: torch.optim.Optimizer
    precision: Precision
    peak_memory: AbstractContextManager[Any]
    penalty: Penalty = lambda: None
    after_step: AfterStep = lambda step: ()
    report: Report = lambda step, loss: None
    checkpoint: NoCheckpoint = NO_CHECKPOINT
    ranks: Ranks = ALONE
    captured: CapturedStep | None = None
    shows_bar: bool = True

    def take_step(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Take one step; return its cross-entropy, still on the device."""
        if self.captured is not None:
            return self.captured(images_BCHW, labels_B)
        return train_step(
            self.classifier,
            images_BCHW,
            labels_B,
            optimizer=self.optimizer,
            precision=self.precision,
            penalty=self.penalty,
            ranks=self.ranks,
        )

    def finish_step(self, step: int) -> None:
        """Call `after_step`; the optimizer drops its state of the tensors that it returns."""
        for parameter in self.after_step(step):
            if self.captured is not None:
                self.captured.forget(parameter)
            else:
                _drop_state(self.optimizer, parameter)

    def training(self) -> AbstractContextManager[None]:
        """Return a context for all steps."""
        return nullcontext() if self.captured is None else self.captured.training()

    def is_watched(self, steps: int) -> bool:
        """Return whether peak memory is still measured after this many steps."""
        return steps < WATCHED_STEPS or not (self.captured is None or self.captured.is_settled)


def train(
    loop: Loop,
    *,
    max_steps: int,
    stop_loss: float,
    lr_min: float,
    restarts: Sequence[int] = (),
    stop_on: Literal["epoch", "batch"] = "epoch",
) -> History:
    """Minimise the cross-entropy for `max_steps` steps or until the loss is small.

    Args:
        loop: see Loop.
        max_steps: the last step, and the length of the cosine in steps.
        stop_loss: the loss that ends training; see `stop_on`. 0: none.
        lr_min: where the cosine ends.
        restarts: the steps after which a new cosine starts, in order. Each cosine falls from the
            optimizer's lr to lr_min within its own steps.
        stop_on: "epoch": an epoch with a mean loss over its images below `stop_loss` is the last.
            "batch": a step with a loss of at most `stop_loss` is the last, as in SO's released code
            for BERT. The host then waits for each step.

    Raises:
        TrainingDiverged: a loss is not finite. The message names step, lr and precision.

    Source: the loop of CLIP-LoRA (arXiv 2405.18541). SO (arXiv 2504.12436) uses the same.
    """
    scheduler = _cosines(loop.optimizer, max_steps, lr_min, restarts)
    history = History()
    # None: hidden if stderr is not a terminal
    hidden = None if loop.ranks.first and loop.shows_bar else True
    with (
        warnings.catch_warnings(),
        tqdm(None, "train", max_steps, unit="step", dynamic_ncols=True, disable=hidden) as progress,
        loop.training(),
        ExitStack() as watched,
    ):
        # In fp16 the scaler skips steps until it has found its scale. torch warns about that.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        recorder = _Recorder(history, progress, loop.precision.name)
        loop.checkpoint.restore(scheduler=scheduler, recorder=recorder)
        loop.ranks.check_same("steps in the checkpoint", recorder.steps)
        if recorder.steps < WATCHED_STEPS:
            watched.enter_context(loop.peak_memory)
        while recorder.steps < max_steps and history.stop_reason == "max_steps":
            for images_BCHW, labels_B in loop.batches.epoch():
                lr = float(scheduler.get_last_lr()[0])
                loss = loop.take_step(images_BCHW, labels_B)
                scheduler.step()
                loop.finish_step(recorder.steps + 1)
                recorder.add(loss, lr, len(labels_B))
                if stop_loss and stop_on == "batch" and recorder.read_last() <= stop_loss:
                    history.stop_reason = "stop_loss"
                loop.report(recorder.steps, recorder.last_loss)
                if recorder.steps == max_steps or history.stop_reason == "stop_loss":
                    break
                if not loop.is_watched(recorder.steps):
                    watched.close()
                    loop.checkpoint.after_step()
            if stop_loss and stop_on == "epoch" and recorder.epoch_mean_loss() < stop_loss:
                history.stop_reason = "stop_loss"
        recorder.read()
    loop.checkpoint.after_training()
    return history


def _cosines(
    optimizer: torch.optim.Optimizer, max_steps: int, lr_min: float, restarts: Sequence[int]
) -> LRScheduler:
    ends = [step for step in restarts if step < max_steps]
    cosines: list[LRScheduler] = [
        CosineAnnealingLR(optimizer, T_max=end - begin, eta_min=lr_min)
        for begin, end in pairwise([0, *ends, max_steps])
    ]
    return SequentialLR(optimizer, cosines, milestones=ends) if ends else cosines[0]


def train_step(
    classifier: nn.Module,
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    penalty: Penalty = lambda: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Take one optimizer step; return the cross-entropy, still on the device."""
    loss = compute_gradients(
        classifier, images_BCHW, labels_B, precision=precision, penalty=penalty, ranks=ranks
    )
    ranks.average_gradients(optimizer)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return ranks.average(loss)


def compute_gradients(
    classifier: nn.Module,
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    precision: Precision,
    penalty: Penalty = lambda: None,
    ranks: Ranks = ALONE,
    caches_casts: bool = True,
) -> Tensor:
    """Compute this process's gradients; return its cross-entropy, without a graph.

    Args:
        classifier, penalty, precision, ranks: see Loop.
        images_BCHW, labels_B: of the whole batch.
        caches_casts: see Precision.autocast.
    """
    shard_BCHW, shard_B = ranks.shard(images_BCHW, labels_B)
    with precision.autocast(caches_casts):
        loss = nn.functional.cross_entropy(classifier(shard_BCHW).float(), shard_B)
        loss = ranks.weight_loss(loss, len(labels_B))
        extra = penalty()
    precision.scaler.scale(loss if extra is None else loss + extra).backward()
    return loss.detach()


def _drop_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Drop an optimizer's state of a parameter. SO has a method for it, because of its supports."""
    forget = getattr(optimizer, "forget", None)
    if forget is not None:
        forget(parameter)
    else:
        optimizer.state.pop(parameter, None)


class _Recorder:
    """Collects losses on the device and moves them into the history in few reads."""

    def __init__(self, history: History, progress: tqdm, precision: str) -> None:
        self._history, self._progress, self._precision = history, progress, precision
        self._unread: list[Tensor] = []
        self._lrs: list[float] = []
        self._images: list[int] = []  # images of each step since the last call of epoch_mean_loss

    @property
    def steps(self) -> int:
        """Steps taken since training began, with their losses read or not."""
        return self._history.steps + len(self._unread)

    @property
    def last_loss(self) -> float | None:
        """The last loss that was read; None before the first."""
        return self._history.losses[-1] if self._history.losses else None

    def add(self, loss: Tensor, lr: float, images: int) -> None:
        self._unread.append(loss)
        self._lrs.append(lr)
        self._images.append(images)
        if len(self._unread) == READ_EVERY_STEPS:
            self.read()

    def read_last(self) -> float:
        """Read all losses; return the last."""
        self.read()
        return self._history.losses[-1]

    def epoch_mean_loss(self) -> float:
        """Return the mean loss over the images since the last call."""
        self.read()
        images, self._images = self._images, []
        losses = self._history.losses[-len(images) :]
        return math.fsum(map(math.prod, zip(losses, images, strict=True))) / sum(images)

    def read(self) -> None:
        """Copy the losses from the device to the history."""
        if not self._unread:
            return
        losses = torch.stack(self._unread).tolist()
        for loss, lr in zip(losses, self._lrs, strict=True):
            self._history.losses.append(loss)
            self._history.lrs.append(lr)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss} at step {self._history.steps} "
                    f"(lr {lr:.3g}, precision {self._precision}). Lower optimizer.lr"
                    + ("." if self._precision == "fp32" else ", or use precision=fp32."),
                    self._history,
                )
        self._progress.update(len(losses))
        self._progress.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
        self._unread, self._lrs = [], []

    def state_dict(self) -> dict[str, Any]:
        """Read all losses; return the history and the images of this epoch's steps."""
        self.read()
        return {**asdict(self._history), "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with that history."""
        self._history.losses[:], self._history.lrs[:] = state_dict["losses"], state_dict["lrs"]
        self._history.stop_reason = state_dict["stop_reason"]
        self._images = [*state_dict["images"]]
        self._progress.initial = self._progress.n = self.steps
