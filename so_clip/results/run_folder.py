"""What a run leaves behind: one folder of small files, each written whole or not at all."""

import contextlib
import csv
import io
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so_clip.errors import InputError, RunBusy, exit_code, say
from so_clip.results.progress import PROGRESS_FILE, Progress
from so_clip.results.run_files import (
    CHANGED_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    ERROR_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    finished_metrics,
)
from so_clip.system import atomic
from so_clip.system.locks import LOCK_FILE, FolderLock, lock_folder, unlock

CHECKPOINT_FILE = "checkpoint.pt"
SKIPPED_FILE = "skipped.csv"
_OF_UNFINISHED = (PROGRESS_FILE, CHECKPOINT_FILE)
_ATTEMPTS = 20


def check_writable(folder: Path) -> None:
    """Fail before any work is done if results cannot be written below `folder`.

    Raises:
        InputError: naming the folder and the reason. Whatever was created to find out is removed.
    """
    created = _missing(folder)
    try:
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder):
                    break
            except FileNotFoundError:
                # Another process, just as careful, has taken the empty folder away again.
                if not attempts_left:
                    raise
    except OSError as error:
        raise InputError(
            f"results_dir={folder} cannot be written: {error.strerror or error}. "
            "Choose another folder with results_dir=FOLDER."
        ) from error
    finally:
        for path in created:
            # Not empty: another run has come to use it.
            with contextlib.suppress(OSError):
                path.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Return the folder and those around it that are not there yet, innermost first."""
    # Path.exists raises below a folder that may not be entered.
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110


class RunFolder:
    """The folder of one run. `metrics.json` is written last: where it is, the run is finished.

    Who writes in it holds its lock, so that two processes with one configuration cannot mix their
    files. The lock ends with its process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.overrides: list[str] = []
        self._begun = self._claimed = self._watched = False

    @contextmanager
    def claimed(self, overrides: Sequence[str] = (), keep_refusals: bool = False) -> Iterator[None]:
        """Keep other processes away meanwhile, and let error.json tell what went wrong.

        Args:
            overrides: of the run, for error.json and progress.json.
            keep_refusals: write error.json of bad input that was found before `start`, too;
                otherwise that leaves nothing.

        Raises:
            RunBusy: another process has it.
            InputError: the folder cannot be written.
        """
        self.overrides = list(overrides)
        created = _missing(self.path)
        lock = self._lock()
        self._claimed = True
        try:
            yield
        except Exception as error:
            if self._begun or keep_refusals or not isinstance(error, InputError):
                self._write_error(error, overrides)
            raise
        finally:
            if self._watched and not self._begun:
                with contextlib.suppress(OSError):  # whatever happens, the lock is given back
                    (self.path / PROGRESS_FILE).unlink()
            self._claimed = self._watched = False
            unlock(lock)
            for path in dict.fromkeys((self.path, *created)):
                with contextlib.suppress(OSError):
                    path.rmdir()  # where nothing was begun

    def finished(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the metrics if the run of this fingerprint is finished, and None otherwise.

        What the report could not show counts as unfinished, and stderr says so. What a process
        left that was killed once all was written is removed.
        """
        path = self.path / METRICS_FILE
        if not path.exists():
            return None
        try:
            metrics = finished_metrics(self.path)
        except InputError as error:
            say(f"{error} It counts as unfinished.")
            return None
        if metrics.get("run_fingerprint") != fingerprint:
            say(f"{path} lacks the fingerprint of its run. It counts as unfinished.")
            return None
        self._remove_rests()
        return metrics

    def watched(self, max_steps: int) -> Progress:
        """Return what tells from now on how far this run is; see Progress."""
        self._watched = True
        progress = Progress(self.path, max_steps, self.overrides)
        progress.evaluate()
        return progress

    def start(self, config: Mapping[str, Any], few_shot: Mapping[str, Any] | None) -> None:
        """Say what this is, and drop all of an earlier attempt but its checkpoint.

        Raises:
            InputError: the folder cannot be written.
        """
        from omegaconf import OmegaConf

        self._begun = True
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _clear(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        atomic.write_text(
            self.path / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        )
        if few_shot is not None:
            atomic.write_json(self.path / "fewshot.json", few_shot)

    def write_history(self, losses: Sequence[float], lrs: Sequence[float]) -> None:
        """Write history.csv: a row a step with `step` (from 1), `loss` and `lr`."""
        rows = ((step, *row) for step, row in enumerate(zip(losses, lrs, strict=True), start=1))
        self._write_csv(HISTORY_FILE, ("step", "loss", "lr"), rows)

    def write_curve(self, rows: Sequence[tuple[int, float]]) -> None:
        """Write curve.csv: a row an evaluation in training with `step` and `accuracy_percent`.

        Nothing where there was none.
        """
        if rows:
            self._write_csv(CURVE_FILE, ("step", "accuracy_percent"), rows)

    def write_changed(self, rows: Sequence[tuple[str, int, int]]) -> None:
        """Write changed.csv: of each opened tensor how many `parameters` it has, and how many of
        them, `changed`, are not what they were before the first step."""
        self._write_csv(CHANGED_FILE, ("tensor", "parameters", "changed"), rows)

    def write_skipped(self, rows: Sequence[Sequence[str]]) -> None:
        """Write skipped.csv: a row a corrupt image that was passed over, with its `dataset`,
        `split`, `path` and the `reason`. Nothing where there was none."""
        if rows:
            self._write_csv(SKIPPED_FILE, ("dataset", "split", "path", "reason"), rows)

    def write_predictions(self, columns: Mapping[str, Sequence[Any]], of: str = "") -> None:
        """Write predictions.csv: a row a test image, in the test split's order.

        Args:
            columns: of equal length, by their names.
            of: which test set, where it is not the run's own: predictions_OF.csv.
        """
        self._write_columns("predictions", of, columns)

    def write_per_class(self, columns: Mapping[str, Sequence[Any]], of: str = "") -> None:
        """Write per_class.csv, or per_class_OF.csv: a row a class, in label order."""
        self._write_columns("per_class", of, columns)

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write provenance.json: what it ran with and on."""
        atomic.write_json(self.path / PROVENANCE_FILE, values)

    def finish(self, metrics: Mapping[str, Any], summary: str) -> None:
        """Write the human table and, last of all, metrics.json."""
        atomic.write_text(self.path / "summary.txt", summary + "\n")
        atomic.write_json(self.path / METRICS_FILE, metrics)
        for name in _OF_UNFINISHED:
            (self.path / name).unlink(missing_ok=True)

    def _remove_rests(self) -> None:
        rests = [self.path / name for name in _OF_UNFINISHED]
        if not any(file.exists() for file in (*rests, self.path / LOCK_FILE)):
            return
        with contextlib.suppress(OSError):  # such as BlockingIOError: it is being done again
            lock = None if self._claimed else lock_folder(self.path)
            try:
                for file in rests:
                    file.unlink(missing_ok=True)
                atomic.remove_dead(self.path, 0)
            finally:
                unlock(lock)

    def _lock(self) -> FolderLock | None:
        try:
            return lock_folder(self.path)
        except BlockingIOError:
            raise RunBusy(
                f"{self.path}: another process is doing this very run. Wait for it, or choose "
                "another folder with results_dir=FOLDER."
            ) from None
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _write_error(self, error: Exception, overrides: Sequence[str]) -> None:
        """Write error.json, unless what went wrong keeps this from being written too."""
        values = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "exit_code": exit_code(error),
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "overrides": list(overrides),
        }
        with contextlib.suppress(InputError):
            atomic.write_json(self.path / ERROR_FILE, values)
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)

    def _write_columns(self, name: str, of: str, columns: Mapping[str, Sequence[Any]]) -> None:
        file = f"{name}_{of}.csv" if of else f"{name}.csv"
        self._write_csv(file, tuple(columns), zip(*columns.values(), strict=True))

    def _write_csv(self, name: str, header: Sequence[str], rows: Any) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        atomic.write_text(self.path / name, text.getvalue())


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {folder}: {error.strerror or error}. "
        "Choose another folder with results_dir=FOLDER."
    )


def _clear(folder: Path) -> None:
    """Empty a folder, but for what a run that was cut off goes on from.

    Metrics go first: from then on it is no finished run.
    """
    if (folder / METRICS_FILE).exists():
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    (folder / METRICS_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in (*_OF_UNFINISHED, LOCK_FILE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def summary_table(rows: Mapping[str, str]) -> str:
    """Return the rows as an aligned two-column text table."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
