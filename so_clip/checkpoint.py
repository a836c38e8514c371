"""Checkpoints: an interrupted run continues as if nothing had happened.

A checkpoint stores the exact tensors, RNG states and counters, so a resumed run reproduces losses
and predictions bit for bit on the same hardware. Everything that follows from the configuration
(frozen weights, few-shot images, zero-shot predictions, an adapter's start) is computed again.
"""

import math
import os
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
from so_clip.system.code_hash import code_sha256, folders_except
from so_clip.system.safe_open import open_plain

if TYPE_CHECKING:
    from so_clip.methods.model import Model

# Left out of the last checkpoint, because only another step needs them.
_FOR_STEPS = ("optimizer", "scheduler", "scaler", "batches", "meta_training")

# Packages that compute in a step, beside torch.
_PACKAGES = ("torchvision", "open_clip_torch", "transformers", "peft", "pytorch-optimizer")

# Rooms that cannot change a training. A checkpoint stays valid when their code changes.
NO_TRAINING = ("cli", "forecast", "prepare", "report", "status", "sweep")


def made_by(fingerprint: str, threads: int | None) -> dict[str, Any]:
    """Return all that must be the same for a run to continue from a file.

    Args:
        fingerprint: of the run.
        threads: CPU threads of torch, which decide how sums are rounded. None on a GPU.
    """
    return {
        "run": fingerprint,
        "code": code_sha256(*folders_except(NO_TRAINING)),
        "torch": str(torch.__version__),
        **{name: version_of(name) for name in _PACKAGES},
        "threads": threads,
    }


class Stateful(Protocol):
    """An object whose state can be saved and restored, as torch's optimizers have it."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and text, in dicts and lists."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a state, on the device of this object."""
        ...


class Stopwatch:
    """Counts seconds of work, including those of earlier processes. It starts at once."""

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
        """Stop the count inside the context."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the saved seconds.

        The seconds of this process so far are dropped: they repeat work that was already counted.
        """
        self._before, self._since = state_dict["seconds"], time.perf_counter()


class ModelState:
    """The trained part of a model: opened tensors, buffers, and the adapter's own state."""

    def __init__(self, model: "Model") -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name, and the adapter's own state."""
        assert self._model.adapter is not None
        return {
            "tensors": {name: value.detach() for name, value in self._tensors().items()},
            "adapter": self._model.adapter.training_state(self._model.classifier),
            "classifier": self._model.classifier.training_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the saved tensors into the model."""
        assert self._model.adapter is not None
        tensors, saved = self._tensors(), state_dict["tensors"]
        for name, value in tensors.items():
            value.copy_(saved[name])
        self._model.adapter.load_training_state(self._model.classifier, state_dict["adapter"])
        self._model.classifier.load_training_state(state_dict["classifier"])
        self._model.classifier.forget_classes()

    def _tensors(self) -> dict[str, Tensor]:
        buffers = self._model.classifier.named_buffers()
        return {**self._model.parameters, **{f"buffer {name}": value for name, value in buffers}}


class NoCheckpoint:
    """Saves nothing and restores nothing."""

    def restore(self, **parts: Stateful) -> None:
        """Do nothing."""

    def after_step(self) -> None:
        """Do nothing."""

    def after_training(self) -> None:
        """Do nothing."""

    def write(self) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""


class Checkpoint(NoCheckpoint):
    """One file with the state of everything that training changes, written at intervals.

    The file is complete or absent. A file is ignored, with a message on stderr, if it is damaged or
    belongs to another run, or if other code or another number of threads wrote it. If a state still
    does not fit, the run fails, because other parts have their new state already.

    Args:
        path: of the file.
        fingerprint: of the run.
        every_seconds: seconds of training between two writes. 0: the file is not used.
        stopwatch: of the training. It stops while a checkpoint is written.
        writes: False if another process writes the file for all.
        threads: CPU threads of torch, which decide how sums are rounded. None on a GPU.
        parts: the objects whose state it saves, and restores in this order.
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
        self._made_by = made_by(fingerprint, threads)
        self._parts: dict[str, Stateful] = {"stopwatch": stopwatch, **parts}
        self._written = time.monotonic()
        self._writes, self._failed = writes and every_seconds > 0, False

    def restore(self, **parts: Stateful) -> None:
        """Add the last parts, and restore all parts from the file if there is one.

        Raises:
            InputError: the file is this run's, but a state does not fit its part. The file is
                renamed, so that the next attempt does not read it.
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
                "renamed. Repeat the run: training then starts from the beginning."
            ) from error
        self._written = time.monotonic()

    def after_step(self) -> None:
        """Write the file if it is time. Otherwise this does not wait for the device."""
        if self._writes and time.monotonic() - self._written >= self._every_seconds:
            self._write([*self._parts])

    def after_training(self) -> None:
        """Write the file once more, so that only the evaluation is repeated.

        What only another step needs is left out, then and in later calls.
        """
        self._parts = {name: part for name, part in self._parts.items() if name not in _FOR_STEPS}
        self.write()

    def write(self) -> None:
        """Write the file now."""
        if self._writes:
            self._write([*self._parts])

    def remove(self) -> None:
        """Remove the file: a run that continues from it would fail again."""
        if self._writes:
            self._path.unlink(missing_ok=True)

    def _write(self, names: list[str]) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the device is still training
        with self._stopwatch.paused():
            states = {name: self._parts[name].state_dict() for name in names}
            try:
                with atomic.writing(self._path) as file:
                    torch.save({"made_by": self._made_by, "states": states}, file)
            except InputError as error:
                if not self._failed:
                    say(f"no checkpoint is written, and the run continues without one: {error}")
                self._failed = True
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any]:
        """Return the states in the file; nothing if there is no usable file."""
        if not self._every_seconds or not self._path.exists():
            return {}
        try:
            with os.fdopen(open_plain(self._path), "rb") as file:
                with zipfile.ZipFile(file) as archive:  # torch's reader does not check checksums
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile
                file.seek(0)
                kept = torch.load(file, map_location="cpu", weights_only=True)
            made_by, states = kept["made_by"], kept["states"]
            self._check(made_by, states)
        except Exception as error:  # damaged files raise almost any exception
            self._ignore(f"it cannot be read ({type(error).__name__})")
            return {}
        for what, mine in self._made_by.items():
            if made_by.get(what) != mine:
                self._ignore(self._difference(what, made_by.get(what)))
                return {}
        missing = self._parts.keys() - states.keys()
        if missing and missing != self._parts.keys() & {*_FOR_STEPS}:
            self._ignore(f"it has no state of {', '.join(sorted(missing))}")
            return {}
        return dict(states)

    @staticmethod
    def _check(made_by: Any, states: Any) -> None:
        """Refuse a file that is not a checkpoint.

        Raises:
            TypeError: a state is not a dict, or the seconds are not a number.
            KeyError: the seconds are missing.
            ValueError: the seconds are negative or not finite.
        """
        if not all(isinstance(value, dict) for value in (made_by, states)):
            raise TypeError
        if not all(isinstance(state, dict) for state in states.values()):
            raise TypeError
        seconds = states["stopwatch"]["seconds"]
        if type(seconds) not in (int, float):
            raise TypeError
        if not 0 <= seconds < math.inf:
            raise ValueError

    def _difference(self, what: str, value: Any) -> str:
        if what == "run":
            return "it belongs to another run"
        if what == "code":
            return "it was written by another version of so_clip"
        if what == "threads":
            return f"it was written with threads={value}, and this run has {self._made_by[what]}"
        return f"it was written under another version of {what}"

    def _ignore(self, reason: str) -> None:
        say(f"{self._path} is ignored: {reason}. Training starts from the beginning.")
