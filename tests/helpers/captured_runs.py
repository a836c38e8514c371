"""Trainings of methods on small models with captured steps, emulated on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.helpers.emulated_graph import EmulatedRecorder


@contextmanager
def emulated_graphs() -> Iterator[list[EmulatedRecorder]]:
    """Let trainings on the CPU capture their steps in this context; return their recorders."""
    recorders: list[EmulatedRecorder] = []

    def recorder(*args: Any) -> EmulatedRecorder:
        recorders.append(EmulatedRecorder(*args))
        return recorders[-1]

    with (
        patch("so_clip.capture.choice.GRAPH_DEVICES", ("cuda", "cpu")),
        patch("so_clip.adaptation.adapting.CudaRecorder", recorder),
    ):
        yield recorders
