"""The finished tasks of an unfinished run, so that a repeated run continues after them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from so_clip.errors import InputError, say
from so_clip.results.run_folder import TASKS_FILE
from so_clip.system import atomic
from so_clip.system.safe_open import read_plain

# The columns of tasks.csv.
COLUMNS = (
    "task",
    "ways",
    "few_shot_images",
    "queries",
    "zero_shot_accuracy_percent",
    "accuracy_percent",
    "steps",
    "train_seconds",
)


@dataclass(frozen=True)
class TaskResult:
    """What one task measured.

    Attributes:
        task: its number, from 0.
        ways, few_shot_images, queries: its classes and images.
        zero_shot_accuracy_percent: on the queries, of the loaded model; None without a text tower.
        accuracy_percent: on the queries, of the adapted model.
        steps: of the training.
        train_seconds, evaluate_seconds: of the adaptation, and of both evaluations.
        memory: as PeakMemory returns it; {} if it was not measured.
        trainable_parameters: entries of the tensors that training changes.
    """

    task: int
    ways: int
    few_shot_images: int
    queries: int
    zero_shot_accuracy_percent: float | None
    accuracy_percent: float
    steps: int
    train_seconds: float
    evaluate_seconds: float
    memory: dict[str, float]
    trainable_parameters: int

    @property
    def row(self) -> tuple[Any, ...]:
        """The task's line of tasks.csv."""
        return tuple(getattr(self, column) for column in COLUMNS)


class FinishedTasks:
    """The results of the finished tasks, in one file that is complete or absent.

    Args:
        folder: of the run.
        made_by: the run, code and packages. A file of others is ignored, with a message.
        keeps: whether to read and write the file.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], keeps: bool) -> None:
        self._path, self._made_by, self._keeps = folder / TASKS_FILE, dict(made_by), keeps
        self.results: dict[int, TaskResult] = {}
        if keeps and self._path.exists():
            self._read()

    def add(self, result: TaskResult) -> None:
        """Add a task, and write the file."""
        self.results[result.task] = result
        if self._keeps:
            values = [asdict(result) for result in self.results.values()]
            atomic.write_json(self._path, {"made_by": self._made_by, "tasks": values})

    def _read(self) -> None:
        reason = "it is damaged"
        try:
            content = json.loads(read_plain(self._path))
            made_by, tasks = content["made_by"], content["tasks"]
            results = [TaskResult(**values) for values in tasks]
        except (OSError, ValueError, TypeError, KeyError, InputError):
            made_by, results = None, []
        else:
            reason = "it belongs to another run, or was written by other code or packages"
        if made_by != self._made_by:
            say(f"{self._path} is ignored: {reason}. All tasks are repeated.")
            return
        self.results = {result.task: result for result in results}
