"""Trainings of methods on small models with captured steps, emulated on the CPU."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from so_clip.build import build_optimizer
from so_clip.capture.captured_step import CapturedStep
from so_clip.methods.model import Model
from so_clip.metrics import Adaptation
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from tests.helpers.battery_parts import batches_of, logits_of, model_of, settings_of, tensors_of
from tests.helpers.emulated_graph import EmulatedRecorder

NEVER = 10**9


@contextmanager
def emulated_graphs(records: bool = True, on_gpu: bool = False) -> Iterator[list[EmulatedRecorder]]:
    """Let trainings on the CPU capture their steps in this context.

    Args:
        records: False: every step is eager, with the arithmetic of captured ones.
        on_gpu: whether weights and gradients are arranged as on a GPU.

    Yields:
        The recorders of the trainings.
    """
    recorders: list[EmulatedRecorder] = []

    def recorder(*args: Any) -> EmulatedRecorder:
        recorders.append(EmulatedRecorder(*args))
        return recorders[-1]

    build = partial(build_optimizer, on_gpu=on_gpu)
    step = CapturedStep if records else partial(CapturedStep, warm_up_steps=NEVER)
    with (
        patch("so_clip.capture.choice.GRAPH_DEVICES", ("cuda", "cpu")),
        patch("so_clip.adaptation.adapting.CudaRecorder", recorder),
        patch("so_clip.adaptation.adapting.CapturedStep", step),
        patch("so_clip.adaptation.adapting.build_optimizer", build),
    ):
        yield recorders


@dataclass
class Trained:
    """A training's results.

    Attributes:
        tensors: all parameters and buffers.
        recordings: of steps; 0 without emulated graphs.
    """

    adaptation: Adaptation
    tensors: dict[str, Tensor]
    logits_BK: Tensor
    recordings: int = 0

    @property
    def losses(self) -> list[float]:
        """The losses of all steps."""
        return self.adaptation.history.losses


class Looking:
    """Stands for the evaluator of a run: classifies test images during training."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def adapted(self) -> Any:
        with self._model.classifier.held_classes():
            logits_BK = logits_of(self._model)
        return SimpleNamespace(accuracy_percent=float(logits_BK.mean()))


def trained(method: str, steps: int = 30, *overrides: str) -> Trained:
    """Train a method on the small model, with batches of 3, 3 and 2 images."""
    settings = settings_of(method, steps, *overrides)
    model = model_of(settings)
    batches = batches_of(settings, model, 3)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings, model, RunFolder(Path(folder)), batches)
        evaluator: Any = Looking(model)  # asked only with evaluation.every_steps
        adaptation = run.adapt(Progress(None, 0), evaluator)
    return Trained(adaptation, tensors_of(model), logits_of(model))


def captured(
    method: str, steps: int = 30, *overrides: str, records: bool = True, on_gpu: bool = False
) -> Trained:
    """Train a method with emulated graphs."""
    with emulated_graphs(records, on_gpu) as recorders:
        done = trained(method, steps, *overrides)
    done.recordings = sum(recorder.recordings for recorder in recorders)
    assert not any(recorder.live for recorder in recorders), "a recording outlives the training"
    return done
