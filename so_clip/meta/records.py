"""The records of a meta-training: rows of its CSV files, and their state for checkpoints."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from so_clip.results.interval import half_width
from so_clip.results.run_files import HISTORY_FILE
from so_clip.results.run_folder import RunFolder
from so_clip.smat.training import MetaTraining, TaskRecord, check_finite

SPARSITY_FILE, VALIDATION_FILE, TEST_FILE = "sparsity.csv", "validation.csv", "test.csv"
HISTORY_COLUMNS = (
    *("tasks", "loss", "cross_entropy", "distillation"),
    *("delta_lr", "mask_lr", "router_lr", "temperature", "mean_sparsity"),
)
SPARSITY_COLUMNS = ("tasks", "expert", "sparsity", "lambda", "expert_weight")
VALIDATION_COLUMNS = ("tasks", "source", "head", "accuracy_percent", "interval_percent")
TEST_COLUMNS = ("target", "head", "tasks", "accuracy_percent", "interval_percent")
# The most moments of a training in sparsity.csv.
_MOMENTS = 200

Accuracies = dict[str, list[float]]


def interval_percent(accuracies: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean over tasks; nan for a single task."""
    return half_width(accuracies) if len(accuracies) > 1 else math.nan


class TrainingRecords:
    """Collects what training and validation measure. It can be saved and restored.

    Attributes:
        best: the number of tasks and the mean validation accuracy, in percent, of the best state;
            None before the first validation.
        validation_seconds: spent on validation.
        file_sha256: of the file of the chosen state; "" before the first.
    """

    def __init__(self, training: MetaTraining) -> None:
        self._training = training
        self.history: list[list[float]] = []
        self.sparsity: list[list[float]] = []
        self.validation: list[list[Any]] = []
        self.best: tuple[int, float] | None = None
        self.validation_seconds = 0.0
        self.file_sha256 = ""
        self._tasks: list[TaskRecord] = []  # since the last update
        updates = training.options.tasks // training.options.tasks_per_update
        self._every_updates = max(1, updates // _MOMENTS)

    @property
    def last_loss(self) -> float | None:
        """The mean loss of the last update's tasks; None before the first update."""
        return self.history[-1][1] if self.history else None

    def add(self, record: TaskRecord) -> None:
        """Keep the record of a task until the update."""
        self._tasks.append(record)

    def after_update(self) -> None:
        """Read the records of an update's tasks from the device, and add its rows.

        Raises:
            RunFailed: a loss is not finite.
        """
        training, records = self._training, self._tasks
        losses = torch.stack(
            [
                torch.stack([record.loss, record.cross_entropy, record.distillation]).float()
                for record in records
            ]
        )
        expert_M = torch.stack([record.expert_M for record in records]).mean(dim=0).tolist()
        sparsities = training.sparsities()
        rates = [made.param_groups[0]["lr"] for made in training.optimizers.values()]
        self.history.append(
            [
                training.tasks,
                *losses.mean(dim=0).tolist(),
                *rates,
                float(training.smat.temperature),
                statistics.fmean(sparsities),
            ]
        )
        self._tasks = []
        for record in records if not math.isfinite(self.history[-1][1]) else ():
            check_finite(record, training.tasks)
        is_last = training.tasks >= training.options.tasks
        if is_last or training.updates % self._every_updates == 0:
            columns = zip(sparsities, training.lambdas(), expert_M, strict=True)
            self.sparsity += [
                [training.tasks, expert, *values] for expert, values in enumerate(columns)
            ]

    def after_validation(self, by_source: Mapping[str, Accuracies], head: str) -> bool:
        """Add the rows of a validation; return whether the state is the best so far.

        Args:
            by_source: the accuracies of the tasks of each source, by head.
            head: its mean over the sources chooses.
        """
        tasks = self._training.tasks
        self.validation += [[tasks, *row] for row in accuracy_rows(by_source)]
        accuracy = mean_accuracy(by_source, head)
        is_best = self.best is None or accuracy > self.best[1]
        if is_best:
            self.best = tasks, accuracy
        return is_best

    def write(self, folder: RunFolder) -> None:
        """Write history.csv, sparsity.csv and, if there is a validation, validation.csv."""
        folder.write_rows(HISTORY_FILE, HISTORY_COLUMNS, self.history)
        folder.write_rows(SPARSITY_FILE, SPARSITY_COLUMNS, self.sparsity)
        if self.validation:
            folder.write_rows(VALIDATION_FILE, VALIDATION_COLUMNS, self.validation)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far; called between updates."""
        assert not self._tasks
        return {
            "history": self.history,
            "sparsity": self.sparsity,
            "validation": self.validation,
            "best": self.best,
            "validation_seconds": self.validation_seconds,
            "file_sha256": self.file_sha256,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with these rows."""
        self.history, self.sparsity = [*state_dict["history"]], [*state_dict["sparsity"]]
        self.validation = [*state_dict["validation"]]
        best = state_dict["best"]
        self.best = None if best is None else (best[0], best[1])
        self.validation_seconds = state_dict["validation_seconds"]
        self.file_sha256 = str(state_dict["file_sha256"])


class TestRecords:
    """The accuracies of the test tasks of each target, by head. They can be saved and restored."""

    __test__ = False  # not a test class of pytest

    def __init__(self) -> None:
        self.by_target: dict[str, Accuracies] = {}
        self.seconds = 0.0

    def done(self, target: str) -> int:
        """Return the number of tasks of a target that are measured."""
        return max(map(len, self.by_target.get(target, {}).values()), default=0)

    def add(self, target: str, accuracies: Mapping[str, float]) -> None:
        """Add the accuracies of a task, by head."""
        add_accuracies(self.by_target.setdefault(target, {}), accuracies)

    def write(self, folder: RunFolder) -> None:
        """Write test.csv. Without a target, write nothing."""
        rows = [
            [target, head, len(self.by_target[target][head]), accuracy, interval]
            for target, head, accuracy, interval in accuracy_rows(self.by_target)
        ]
        if rows:
            folder.write_rows(TEST_FILE, TEST_COLUMNS, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return all accuracies."""
        return {"by_target": self.by_target, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with these accuracies."""
        self.by_target, self.seconds = dict(state_dict["by_target"]), state_dict["seconds"]


def add_accuracies(by_head: Accuracies, accuracies: Mapping[str, float]) -> None:
    """Add the accuracies of one more task to lists by head."""
    for head, accuracy in accuracies.items():
        by_head.setdefault(head, []).append(accuracy)


def accuracy_rows(by_dataset: Mapping[str, Accuracies]) -> list[list[Any]]:
    """Return dataset, head, mean accuracy and interval, for each dataset and head."""
    return [
        [dataset, head, statistics.fmean(accuracies), interval_percent(accuracies)]
        for dataset, by_head in by_dataset.items()
        for head, accuracies in by_head.items()
    ]


def mean_accuracy(by_dataset: Mapping[str, Accuracies], head: str) -> float:
    """Return the mean over datasets of the mean accuracy of a head, in percent."""
    return statistics.fmean(statistics.fmean(by_head[head]) for by_head in by_dataset.values())
