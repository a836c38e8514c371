"""Export runs as event files for TensorBoard.

The CSV and JSON files hold the values; event files are copies, and may be deleted at any time.
The extra `tensorboard` is needed. torch's SummaryWriter is not used: it chooses its own file name,
stamps the present time, writes hyperparameters to a second file, and needs torch. The file name
here holds the time of the newest source file, so an unchanged run is recognised and written once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from so_clip.config.settings import NO_DIFFERENCE
from so_clip.errors import InputError
from so_clip.escape import line
from so_clip.report.progress import watched
from so_clip.results.run_files import (
    CURVE_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    flat_options,
    number_of,
    read_columns,
    read_metrics,
)
from so_clip.status.runs import read_states
from so_clip.system import atomic
from so_clip.system.commands import install

# The columns of a run's CSV files, and their tags in the events.
CURVES = {
    HISTORY_FILE: {"loss": "train/loss", "lr": "train/lr"},
    CURVE_FILE: {"accuracy_percent": "test/accuracy_percent"},
}
# Values of metrics.json: every value is one point at the last step.
VALUES = (
    "zero_shot_accuracy_percent",
    "accuracy_percent",
    "accuracy_low_percent",
    "accuracy_high_percent",
    "new_accuracy_percent",
    "harmonic_mean_percent",
    "peak_memory_mib",
    "train_seconds",
    "trainable_parameters",
)
_WAY_OUT = " Give the folder that holds run folders, such as results/runs."
_PREFIX = "events.out.tfevents"

Point = tuple[str, int, float]  # tag, step, value


def require_tensorboard() -> None:
    """Check that tensorboard is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"event files need tensorboard ({error}): {install('so-clip[tensorboard]')}."
        ) from None


def export(results_dir: Path, logdir: Path) -> tuple[int, list[str]]:
    """Write an event file for each run that has none yet or has changed.

    A run has the same path below `logdir` as below `results_dir`. Its events are the columns of
    history.csv and curve.csv, the values of a finished run, and its settings as hyperparameters.

    Returns:
        The number of written files, and a line for each run that cannot be read, with the reason.

    Raises:
        InputError: the folder does not exist, no run in it can be used, or `logdir` cannot be
            written.
    """
    unreadable: list[str] = []
    written, current, skipped = 0, 0, []
    runs = sorted(read_states(results_dir, unreadable).items())
    for folder, run in watched(runs, "runs"):
        sources = [
            path for name in (*CURVES, METRICS_FILE) if (path := Path(folder) / name).is_file()
        ]
        if not sources:
            continue
        newest_ns = max(path.stat().st_mtime_ns for path in sources)
        events = logdir / run.name / f"{_PREFIX}.{newest_ns // 10**9:010d}.{newest_ns}.so_clip"
        if events.exists():
            current += 1
            continue
        try:
            points, settings = _read(Path(folder))
        except InputError as error:
            skipped.append(str(error))
            continue
        _write(events, points, settings, newest_ns / 1e9)
        for path in events.parent.glob(f"{_PREFIX}.*.so_clip"):
            if path != events:
                path.unlink()
        written += 1
    left_out = [*skipped, *unreadable]
    if not (written or current):
        reasons = f" Left out: {' '.join(left_out)}" if left_out else ""
        begun = " Its runs have measured nothing yet." if runs and not left_out else ""
        raise InputError(f"{results_dir}: no run in it to export.{begun}{reasons or _WAY_OUT}")
    return written, left_out


def _read(folder: Path) -> tuple[list[Point], dict[str, Any]]:
    """Return a run's points and its flat settings (empty for an unfinished run)."""
    points = []
    for name, tags in CURVES.items():
        if (folder / name).is_file():
            points += list(_columns(folder / name, tags))
    if not (folder / METRICS_FILE).is_file():
        return points, {}
    metrics = read_metrics(folder / METRICS_FILE)
    last = int(number_of(metrics, "steps") or 0)
    for key in VALUES:
        value = number_of(metrics, key)
        if value is not None:
            points.append((f"final/{key}", last, value))
    settings = metrics.get("settings")
    options = flat_options(settings) if isinstance(settings, dict) else {}
    return points, {
        name: value if _is_plain(value) else line(str(value))
        for name, value in options.items()
        if name not in NO_DIFFERENCE
    }


def _is_plain(value: Any) -> bool:
    """Return whether TensorBoard shows a value as a number or as true and false."""
    return isinstance(value, (bool, int, float)) and abs(value) < 2**63


def _columns(path: Path, tags: dict[str, str]) -> Iterator[Point]:
    columns = read_columns(path, whole=("step",), numbers=tuple(tags))
    for at, step in enumerate(columns["step"].tolist()):
        for column, tag in tags.items():
            yield tag, step, float(columns[column][at])


def _write(path: Path, points: list[Point], settings: dict[str, Any], ended_at: float) -> None:
    """Write an event file atomically; the points' own times are unknown, so all get `ended_at`."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    with atomic.writing(path) as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=ended_at, file_version="brain.Event:2").SerializeToString())
        if settings:
            summary = hparams_pb(settings, trial_id=path.parent.name, start_time_secs=ended_at)
            records.write(Event(wall_time=ended_at, summary=summary).SerializeToString())
        for tag, step, value in points:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            event = Event(wall_time=ended_at, step=step, summary=summary)
            records.write(event.SerializeToString())
