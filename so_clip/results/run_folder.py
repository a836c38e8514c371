"""The folder of one run: small files, each written whole or not at all."""

import contextlib
import csv
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so_clip.errors import InputError, RunBusy, RunFailed, exit_code, reason_of, say, without_middle
from so_clip.escape import csv_row, terminal
from so_clip.results.progress import PROGRESS_FILE, Progress
from so_clip.results.run_files import (
    CHANGED_COLUMNS,
    CHANGED_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    ERROR_FILE,
    FEW_SHOT_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    finished_metrics,
)
from so_clip.results.writable import missing_folders, remove_empty
from so_clip.system import atomic
from so_clip.system.locks import LOCK_FILE, FolderLock, lock_folder, unlock

CHECKPOINT_FILE, TASKS_FILE = "checkpoint.pt", "finished_tasks.json"
SKIPPED_FILE = "skipped.csv"
# Files of an unfinished run. A finished run does not have them.
_UNFINISHED_FILES = (PROGRESS_FILE, CHECKPOINT_FILE, TASKS_FILE)
MAX_TRACEBACK = 50_000


class RunFolder:
    """The folder of one run. `metrics.json` is written last, so a folder that has it is finished.

    The process that writes holds the folder's lock, so two processes with the same configuration
    cannot mix their files. The lock ends with its process, however the process ends.
    """

    def __init__(self, path: Path, kept: Sequence[str] = ()) -> None:
        """Describe a folder; nothing is created.

        Args:
            path: of the folder.
            kept: patterns of more files from which an interrupted run resumes.
        """
        self.path, self._kept = path, tuple(kept)
        self.overrides: list[str] = []
        self._started = self._claimed = self._watched = False
        self._is_job = False
        self._lock: FolderLock | None = None

    @contextmanager
    def claimed(self, overrides: Sequence[str] = (), keep_refusals: bool = False) -> Iterator[None]:
        """Hold the folder's lock; write error.json if the block raises an error.

        Args:
            overrides: of the run, for error.json and progress.json.
            keep_refusals: the run is a job of a sweep. It prints no progress, and also writes
                error.json for bad input that is found before `start`. Otherwise such bad input
                leaves no folder.

        Raises:
            RunBusy: another process holds the lock.
            InputError: the folder cannot be written.
            RunFailed: someone removed or renamed the folder meanwhile.
        """
        self.overrides = list(overrides)
        for name in (*_UNFINISHED_FILES, METRICS_FILE):
            if os.path.isdir(self.path / name):  # noqa: PTH112 - Path.is_dir raises on a locked folder
                raise InputError(
                    f"{self.path / name}: is a folder, and the run writes a file of that name. "
                    "Remove it and repeat the run."
                )
        created = missing_folders(self.path)
        try:
            lock = lock_folder(self.path)
        except BlockingIOError:
            raise RunBusy(
                f"{self.path}: another process is running this configuration. Wait for it, or "
                "choose another folder with results_dir=FOLDER."
            ) from None
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._claimed, self._lock, self._is_job = True, lock, keep_refusals
        try:
            yield
        except Exception as error:
            if self._started or keep_refusals or not isinstance(error, InputError):
                self._write_error(error)
            raise
        finally:
            if self._watched and not self._started:
                with contextlib.suppress(OSError):  # the lock must be given back in any case
                    (self.path / PROGRESS_FILE).unlink()
            self._claimed = self._watched = False
            self._lock = None
            unlock(lock)
            remove_empty([self.path, *created])

    def check_in_place(self) -> None:
        """Check that nobody removed or renamed the folder since this process claimed it.

        Otherwise each further file would make the folder again, without the earlier files.

        Raises:
            RunFailed: naming the folder.
        """
        if not self._is_in_place:
            raise RunFailed(
                f"{self.path} was removed or renamed while its run worked, so the run has no place "
                "for its results. Run the same command again."
            )

    @property
    def _is_in_place(self) -> bool:
        if self._lock is not None:
            return self._lock.is_in_place
        # A file system without locks, or a caller that claims nothing.
        return not self._started or (self.path / CONFIG_FILE).exists()

    def finished(
        self,
        fingerprint: str,
        demanded_files: Sequence[str] = (),
        read: Callable[[Path], dict[str, Any]] = finished_metrics,
    ) -> dict[str, Any] | None:
        """Return the metrics if the run with this fingerprint is finished, and None otherwise.

        Metrics that the report cannot show count as unfinished, with a message on stderr, and so
        does a run without one of the demanded files. Files that a process left when it was killed
        after its last write are removed.

        Args:
            fingerprint, demanded_files: see above.
            read: returns the metrics of a folder, or raises InputError.
        """
        path = self.path / METRICS_FILE
        if not path.exists():
            return None
        try:
            metrics = read(self.path)
        except InputError as error:
            say(f"{error} It counts as unfinished.")
            return None
        if not (self.path / CONFIG_FILE).exists():
            say(f"{self.path} has no {CONFIG_FILE}. It counts as unfinished.")
            return None
        if metrics.get("run_fingerprint") != fingerprint:
            say(f"{path} does not have the fingerprint of its run. It counts as unfinished.")
            return None
        for name in demanded_files:
            if not (self.path / name).exists():
                say(f"{self.path} has no {name}. The run is repeated to make it.")
                return None
        self._remove_leftovers()
        return metrics

    def watched(self, max_steps: int, unit: str = "step") -> Progress:
        """Start progress.json, and return its writer; see Progress."""
        self._watched = True
        progress = Progress(
            self.path,
            max_steps,
            self.overrides,
            check=self.check_in_place,
            prints=not self._is_job and not sys.stderr.isatty(),
            unit=unit,
        )
        progress.evaluate()
        return progress

    def start(self, config: Mapping[str, Any], few_shot: Mapping[str, Any] | None) -> None:
        """Remove an earlier attempt's files, except those to resume from; write config.yaml.

        Raises:
            InputError: the folder cannot be written.
        """
        from omegaconf import OmegaConf

        self.check_in_place()
        self._started = True
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _clear(self.path, self._kept)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        atomic.write_text(
            self.path / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        )
        if few_shot is not None:
            atomic.write_json(self.path / FEW_SHOT_FILE, few_shot)

    def write_history(self, losses: Sequence[float], lrs: Sequence[float]) -> None:
        """Write history.csv: one row per step (from 1) with `step`, `loss` and `lr`."""
        rows = ((step, *row) for step, row in enumerate(zip(losses, lrs, strict=True), start=1))
        self.write_rows(HISTORY_FILE, ("step", "loss", "lr"), rows)

    def write_curve(self, rows: Sequence[tuple[int, float]]) -> None:
        """Write curve.csv: one row per evaluation during training. Without rows, write nothing."""
        if rows:
            self.write_rows(CURVE_FILE, ("step", "accuracy_percent"), rows)

    def write_changed(self, rows: Sequence[tuple[str, int, int, str, int | None, str]]) -> None:
        """Write changed.csv: per trainable tensor, its entries, how many changed, and its place."""
        self.write_rows(CHANGED_FILE, CHANGED_COLUMNS, rows)

    def write_skipped(self, rows: Sequence[Sequence[str]]) -> None:
        """Write skipped.csv: one row per skipped corrupt image. Without rows, write nothing."""
        if rows:
            self.write_rows(SKIPPED_FILE, ("dataset", "split", "path", "reason"), rows)

    def write_columns(
        self, file: str, columns: Mapping[str, Sequence[Any]], test_set: str = ""
    ) -> None:
        """Write predictions.csv (a row per test image) or per_class.csv (a row per class).

        Args:
            file: the file's name.
            columns: by their names, all of the same length.
            test_set: the name of another test set than the run's own, put into the file's name.
        """
        name = file.replace(".csv", f"_{test_set}.csv") if test_set else file
        self.write_rows(name, [*columns], zip(*columns.values(), strict=True))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file of other content, such as the kept logits."""
        self.check_in_place()
        atomic.write_bytes(self.path / name, data)

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write provenance.json: the versions, code and hardware of the run."""
        self.check_in_place()
        atomic.write_json(self.path / PROVENANCE_FILE, values)

    def finish(self, metrics: Mapping[str, Any], summary: str) -> None:
        """Write the summary for people and, last of all files, metrics.json."""
        self.check_in_place()
        atomic.write_text(self.path / "summary.txt", terminal(summary) + "\n")
        atomic.write_json(self.path / METRICS_FILE, metrics)
        self.check_in_place()
        for name in _UNFINISHED_FILES:
            (self.path / name).unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        leftovers = [self.path / name for name in _UNFINISHED_FILES]
        if not any(file.exists() for file in (*leftovers, self.path / LOCK_FILE)):
            return
        with contextlib.suppress(OSError):  # BlockingIOError: another process repeats the run
            lock = None if self._claimed else lock_folder(self.path)
            try:
                for file in leftovers:
                    file.unlink(missing_ok=True)
                atomic.remove_dead(self.path, 0)
            finally:
                unlock(lock)

    def _write_error(self, error: Exception) -> None:
        """Write error.json, unless the disk refuses that too or the folder is gone."""
        if not self._is_in_place:
            return
        values = {
            "kind": type(error).__name__,
            "message": without_middle(str(error)),
            "traceback": without_middle("".join(traceback.format_exception(error)), MAX_TRACEBACK),
            "exit_code": exit_code(error),
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "overrides": self.overrides,
        }
        with contextlib.suppress(InputError):
            atomic.write_json(self.path / ERROR_FILE, values)
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)

    def write_rows(self, name: str, header: Sequence[str], rows: Any) -> None:
        """Write a CSV file of other content."""
        self.check_in_place()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(csv_row(header))
        writer.writerows(map(csv_row, rows))
        atomic.write_text(self.path / name, text.getvalue())


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {folder}: {reason_of(error)}. Choose another folder with results_dir=FOLDER."
    )


def _clear(folder: Path, kept: Sequence[str] = ()) -> None:
    """Empty a folder, except for the files from which an interrupted run resumes.

    metrics.json is removed first, so an interrupted `_clear` leaves no finished run.

    Args:
        folder: to empty.
        kept: patterns of more files from which an interrupted run resumes.
    """
    if (folder / METRICS_FILE).exists():
        for name in (CHECKPOINT_FILE, TASKS_FILE):
            (folder / name).unlink(missing_ok=True)
    (folder / METRICS_FILE).unlink(missing_ok=True)
    # Without a checkpoint, nothing resumes.
    kept = kept if (folder / CHECKPOINT_FILE).exists() else ()
    for path in folder.iterdir():
        if path.name in (*_UNFINISHED_FILES, LOCK_FILE) or any(map(path.match, kept)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
