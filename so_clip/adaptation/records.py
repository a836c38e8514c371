"""Records of an adaptation: files in the run's folder, or none."""

from typing import Any

from so_clip.adapters.before import Before
from so_clip.adapters.change import Change
from so_clip.adapters.of_run import changes_to_save
from so_clip.checkpoint import Checkpoint, NoCheckpoint, Stopwatch
from so_clip.config.run_settings import RunPlacement
from so_clip.evaluate.accuracy_curve import Curve
from so_clip.methods.model import Model
from so_clip.results.run_folder import CHECKPOINT_FILE, RunFolder
from so_clip.runtime.device import threads_of
from so_clip.train import History


class NoRecords:
    """Keeps nothing, as for one of many tasks.

    Attributes:
        shows_bar: whether training shows a progress bar.
    """

    shows_bar = False

    def before_start(self) -> None:
        """Do nothing."""

    def after_start(self) -> None:
        """Do nothing."""

    def checkpoint(self, stopwatch: Stopwatch, **parts: Any) -> NoCheckpoint:
        """Return a checkpoint that saves nothing."""
        return NoCheckpoint()

    def write_training(self, history: History, curve: Curve) -> None:
        """Do nothing."""

    def write_changes(self) -> int:
        """Return the number of changed entries; 0, because they are not counted."""
        return 0


class FolderRecords(NoRecords):
    """Keeps checkpoint, history.csv, curve.csv, changed.csv, and the changes for the adapter file.

    Args:
        model: of the run.
        folder: of the run.
        fingerprint: of the run; its checkpoint carries it.
        placement: says how often to write checkpoints, and whether to save the adapter.
        writes: False if another process writes for all.

    Attributes:
        changes: of the base's tensors. None: they are too large for the adapter file.
    """

    shows_bar = True

    def __init__(
        self,
        model: Model,
        folder: RunFolder,
        fingerprint: str,
        placement: RunPlacement,
        writes: bool,
    ) -> None:
        self._model, self._folder, self._fingerprint = model, folder, fingerprint
        self._placement, self._writes = placement, writes
        self._before: Before | None = None
        self.changes: dict[str, Change] | None = {}

    def before_start(self) -> None:
        """Copy the tensors that the adaptation may change."""
        self._before = Before(self._model)

    def after_start(self) -> None:
        """Copy the first values that the adapter's `start` has set."""
        assert self._before is not None
        self._before.started()

    def checkpoint(self, stopwatch: Stopwatch, **parts: Any) -> NoCheckpoint:
        """Return the checkpoint of the run's folder, with these parts."""
        return Checkpoint(
            self._folder.path / CHECKPOINT_FILE,
            self._fingerprint,
            self._placement.checkpoint_seconds,
            stopwatch,
            writes=self._writes,
            threads=threads_of(self._model.device),
            **parts,
        )

    def write_training(self, history: History, curve: Curve) -> None:
        """Write history.csv and curve.csv."""
        if self._writes:
            self._folder.write_history(history.losses, history.lrs)
            self._folder.write_curve(curve.rows)

    def write_changes(self) -> int:
        """Write changed.csv; return the number of changed entries."""
        assert self._before is not None
        changed = self._before.counts()
        if self._writes:
            self._folder.write_changed(changed)
            self.changes = changes_to_save(self._before, self._placement.save)
        return sum(row.changed for row in changed)
