"""Checkpoints: what a run that was cut off needs to go on as if nothing had happened.

Nothing in a checkpoint is worked out anew in another way: it holds the very tensors, generators'
states and numbers that training goes on from, so that losses and predictions come out the same to
the last bit on the same hardware. What follows from the configuration alone (frozen weights, the
few shots, zero-shot predictions, an adapter's start) is made again as at first.
"""

import math
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from so_clip.errors import InputError, say
from so_clip.results.provenance import version_of
from so_clip.system import atomic
from so_clip.system.code_hash import code_sha256, parts_but

if TYPE_CHECKING:
    from so_clip.adapt.model import Model

# Training is over: what only another step would need is left out of the last checkpoint.
_FOR_STEPS = ("optimizer", "scheduler", "scaler", "batches")

# Beside torch, what computes in a step.
_PACKAGES = ("torchvision", "open_clip_torch", "peft", "pytorch-optimizer")

# What looks at runs or makes ready for them, and has no part in them.
READERS = (
    *("doctor", "forecast", "prepare", "report", "status"),
    *("arguments.py", "manual.py", "table.py", "tensorboard.py"),
)


class Stateful(Protocol):
    """Whose state can be taken and given back, as that of torch's optimizers can."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and text, in dicts and lists."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go on from a state, on whatever device this is on."""
        ...


class Stopwatch:
    """Seconds of work, those of earlier processes included. It runs from the beginning."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = time.perf_counter()  # None: it is paused

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what is done inside."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from those seconds: what this process has done so far was done before, too."""
        self._before, self._since = state_dict["seconds"], time.perf_counter()


class ModelState:
    """What training has made of a model: opened tensors, buffers, and its adapter's own state."""

    def __init__(self, model: "Model") -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name, and what the adapter has beside them."""
        assert self._model.adapter is not None
        return {
            "tensors": {name: value.detach() for name, value in self._tensors().items()},
            "adapter": self._model.adapter.training_state(self._model.classifier),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back where they were."""
        assert self._model.adapter is not None
        tensors, saved = self._tensors(), state_dict["tensors"]
        for name, value in tensors.items():
            value.copy_(saved[name])
        self._model.adapter.load_training_state(self._model.classifier, state_dict["adapter"])
        self._model.classifier.forget_classes()

    def _tensors(self) -> dict[str, Tensor]:
        buffers = self._model.classifier.named_buffers()
        return {**self._model.parameters, **{f"buffer {name}": value for name, value in buffers}}


class NoCheckpoint:
    """Keeps nothing and gives nothing back."""

    def restore(self, **parts: Stateful) -> None:
        """Leave these parts as they are."""

    def after_step(self) -> None:
        """Do nothing."""

    def after_training(self) -> None:
        """Do nothing."""


class Checkpoint(NoCheckpoint):
    """One file with the state of all that training changes, written from time to time.

    It is whole or not there. A file that is damaged, of another run, or written by other code or
    with another number of threads is left aside with a word on stderr. So what is read fits; should
    a state not fit all the same, the run fails, since the parts before it have been given theirs.

    Args:
        path: of the file.
        fingerprint: of the run.
        every_seconds: of training between two writings; 0: the file is neither written nor read.
        stopwatch: of the training, stopped while a checkpoint is written.
        writes: False where another process writes the file for all.
        threads: that a CPU computes with, since sums are rounded by their order; None on a GPU.
        parts: what it keeps the state of, and gives it back to in this order.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        every_seconds: float,
        stopwatch: Stopwatch,
        writes: bool = True,
        threads: int | None = None,
        **parts: Stateful,
    ) -> None:
        self._path, self._every_seconds, self._stopwatch = path, every_seconds, stopwatch
        self._made_by = {
            "run": fingerprint,
            "code": code_sha256(*parts_but(READERS)),
            "torch": str(torch.__version__),
            **{name: version_of(name) for name in _PACKAGES},
            "threads": threads,
        }
        self._parts: dict[str, Stateful] = {"stopwatch": stopwatch, **parts}
        self._written = time.monotonic()
        self._writes, self._failed = writes and every_seconds > 0, False

    def restore(self, **parts: Stateful) -> None:
        """Take in the last parts, and give all of them the state in the file, if there is one.

        Raises:
            InputError: the file is this run's, but its state is not for these parts, of which some
                may have theirs already. The file is put out of the next attempt's way.
        """
        self._parts |= parts
        states = self._read()
        try:
            for name, part in self._parts.items():
                if name in states:
                    part.load_state_dict(states[name])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if self._writes:
                with suppress(OSError):
                    self._path.replace(self._path.with_name(f"{self._path.name}.unusable"))
            raise InputError(
                f"{self._path} does not fit this run ({type(error).__name__}: {error}), and was "
                "renamed. Repeat: training then begins anew."
            ) from error
        self._written = time.monotonic()

    def after_step(self) -> None:
        """Write the file if it is time to. Until then, this waits for no device."""
        if self._writes and time.monotonic() - self._written >= self._every_seconds:
            self._write([*self._parts])

    def after_training(self) -> None:
        """Write the file once more, so that nothing but the evaluation has to be repeated."""
        if self._writes:
            self._write([name for name in self._parts if name not in _FOR_STEPS])

    def remove(self) -> None:
        """Remove the file: going on from it would end as this process did."""
        if self._writes:
            self._path.unlink(missing_ok=True)

    def _write(self, names: list[str]) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what the device has yet to do is training
        with self._stopwatch.paused():
            states = {name: self._parts[name].state_dict() for name in names}
            try:
                with atomic.writing(self._path) as file:
                    torch.save({"made_by": self._made_by, "states": states}, file)
            except (InputError, RuntimeError) as error:  # torch's own, if the disk is full
                if not self._failed:
                    say(f"no checkpoint is kept, and the run goes on without: {error}")
                self._failed = True
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any]:
        """Return the states in the file, or none if there is no file that will do."""
        if not self._every_seconds or not self._path.exists():
            return {}
        try:
            with zipfile.ZipFile(self._path) as archive:  # torch's own reader checks no sums
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
            kept = torch.load(self._path, map_location="cpu", weights_only=True)
            made_by, states = kept["made_by"], kept["states"]
            self._check(made_by, states)
        except Exception as error:  # torn or foreign files end in nearly every one there is
            self._leave_aside(f"it cannot be read ({type(error).__name__})")
            return {}
        for what, mine in self._made_by.items():
            if made_by.get(what) != mine:
                self._leave_aside(self._difference(what, made_by.get(what)))
                return {}
        missing = self._parts.keys() - states.keys()
        if missing and missing != self._parts.keys() & {*_FOR_STEPS}:
            self._leave_aside(f"it lacks the state of {', '.join(sorted(missing))}")
            return {}
        return dict(states)

    @staticmethod
    def _check(made_by: Any, states: Any) -> None:
        """Refuse what no checkpoint of any run looks like.

        Raises:
            TypeError: something is no dict, or the seconds are no number.
            KeyError: there are no seconds.
            ValueError: the seconds are none.
        """
        if not all(isinstance(each, dict) for each in (made_by, states)):
            raise TypeError
        if not all(isinstance(each, dict) for each in states.values()):
            raise TypeError
        seconds = states["stopwatch"]["seconds"]
        if type(seconds) not in (int, float):
            raise TypeError
        if not 0 <= seconds < math.inf:
            raise ValueError

    def _difference(self, what: str, its: Any) -> str:
        if what == "run":
            return "it is another run's"
        if what == "code":
            return "it was written by another version of so_clip"
        if what == "threads":
            return f"it was written with threads={its}, and there are {self._made_by[what]}"
        return f"it was written under another version of {what}"

    def _leave_aside(self, reason: str) -> None:
        say(f"{self._path} is left aside: {reason}. Training begins anew.")
