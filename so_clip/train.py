"""The training loop: images in, loss, backward, step. It knows no method and no dataset."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from so_clip.checkpoint import NoCheckpoint
from so_clip.errors import RunFailed
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.runtime.precision import Precision

# Losses stay on the device and are read this often, so that a step does not wait for the host and a
# loss that is no longer finite is noticed soon. So are they at the end of an epoch that may be the
# last: no step can begin before that is known.
READ_EVERY_STEPS = 50
# The peak is watched over the first steps, enough to see a support redrawn at the default T of 10.
WATCHED_STEPS = 12
NO_CHECKPOINT = NoCheckpoint()

Penalty = Callable[[], Tensor | None]
AfterStep = Callable[[int], Iterable[Tensor]]
Tell = Callable[[int, float | None], None]


class Batches(Protocol):
    """Training batches, reshuffled and augmented anew every epoch."""

    def epoch(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (images_BCHW uint8, labels_B int64) on the device."""
        ...


@dataclass
class History:
    """What each step saw, and why training ended: max_steps or stop_loss."""

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    stop_reason: str = "max_steps"

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)


class TrainingDiverged(RunFailed):
    """The loss is no longer finite. `history` holds the steps up to and including that one."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class Loop:
    """What training works with, and whom it calls on its way.

    Attributes:
        classifier: images_BCHW uint8 -> logits_BK.
        batches: see Batches.
        optimizer: holds the parameters that change; its lr is where the cosine starts.
        precision: autocast and gradient scaling.
        peak_memory: entered around the first WATCHED_STEPS steps.
        penalty: added to the cross-entropy, but not to the losses in the history; None: nothing.
        after_step: called with the number of steps taken; of the tensors that it returns, the
            optimizer forgets what it remembers.
        tell: called with the number of steps taken and the last loss that was read, if any was.
        checkpoint: where training goes on from, and what it leaves for a process to come.
        ranks: the processes that take each step together; all must be given the same.
    """

    classifier: nn.Module
    batches: Batches
    optimizer: torch.optim.Optimizer
    precision: Precision
    peak_memory: AbstractContextManager[Any]
    penalty: Penalty = lambda: None
    after_step: AfterStep = lambda step: ()
    tell: Tell = lambda step, loss: None
    checkpoint: NoCheckpoint = NO_CHECKPOINT
    ranks: Ranks = ALONE

    def take_step(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Take one step; return its cross-entropy, still on the device."""
        how = self.optimizer, self.precision, self.penalty, self.ranks
        return train_step(self.classifier, images_BCHW, labels_B, *how)

    def finish_step(self, step: int) -> None:
        """Do what is to be done after this many steps."""
        for parameter in self.after_step(step):
            _forget(self.optimizer, parameter)


def train(loop: Loop, *, max_steps: int, stop_loss: float, lr_min: float) -> History:
    """Minimise the classifier's cross-entropy for `max_steps` or until an epoch's loss is small.

    Args:
        loop: see Loop.
        max_steps: the last step and the cosine's horizon; the cosine is stepped every iteration.
        stop_loss: an epoch whose mean loss over its images is below this is the last; 0: none is.
        lr_min: where the cosine ends.

    Raises:
        TrainingDiverged: a loss is not finite; the message names step, lr and precision.

    Source: the loop of CLIP-LoRA (arXiv 2405.18541), which SO (arXiv 2504.12436) shares.
    """
    scheduler = CosineAnnealingLR(loop.optimizer, T_max=max_steps, eta_min=lr_min)
    history = History()
    hidden = None if loop.ranks.first else True  # None: where nobody would see it move
    with (
        warnings.catch_warnings(),
        tqdm(None, "train", max_steps, unit="step", dynamic_ncols=True, disable=hidden) as progress,
        ExitStack() as watched,
    ):
        # In fp16 the scaler skips steps until it has found its scale; that is no mistake in order.
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
                loop.tell(recorder.steps, recorder.last_loss)
                if recorder.steps == max_steps:
                    break
                if recorder.steps >= WATCHED_STEPS:
                    watched.close()
                    loop.checkpoint.after_step()
            if stop_loss and recorder.epoch_mean_loss() < stop_loss:
                history.stop_reason = "stop_loss"
        recorder.read()
    loop.checkpoint.after_training()
    return history


def train_step(
    classifier: nn.Module,
    images_BCHW: Tensor,
    labels_B: Tensor,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    penalty: Penalty = lambda: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Take one step along the gradient; return the cross-entropy, still on the device."""
    shard_BCHW, shard_B = ranks.shard(images_BCHW, labels_B)
    with precision.autocast():
        loss = nn.functional.cross_entropy(classifier(shard_BCHW).float(), shard_B)
        loss = ranks.weight_loss(loss, len(labels_B))
        extra = penalty()
    precision.scaler.scale(loss if extra is None else loss + extra).backward()
    ranks.average_gradients(optimizer)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return ranks.average(loss.detach())


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Drop what an optimizer remembers of a parameter; one that draws supports is told to."""
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
        self._images: list[int] = []  # of each step since the last epoch that was asked for

    @property
    def steps(self) -> int:
        """Steps taken since training began, read or not."""
        return self._history.steps + len(self._unread)

    @property
    def last_loss(self) -> float | None:
        """The last loss that was read, None before."""
        return self._history.losses[-1] if self._history.losses else None

    def add(self, loss: Tensor, lr: float, images: int) -> None:
        self._unread.append(loss)
        self._lrs.append(lr)
        self._images.append(images)
        if len(self._unread) == READ_EVERY_STEPS:
            self.read()

    def epoch_mean_loss(self) -> float:
        """Return the mean loss over the images since this was last asked for."""
        self.read()
        images, self._images = self._images, []
        losses = self._history.losses[-len(images) :]
        return math.fsum(map(math.prod, zip(losses, images, strict=True))) / sum(images)

    def read(self) -> None:
        """Wait for the losses that are still on the device."""
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
        """Read what is unread; return the history, and the images of this epoch's steps."""
        self.read()
        return {**asdict(self._history), "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that history."""
        self._history.losses[:], self._history.lrs[:] = state_dict["losses"], state_dict["lrs"]
        self._history.stop_reason = state_dict["stop_reason"]
        self._images = [*state_dict["images"]]
        self._progress.initial = self._progress.n = self.steps
