"""Every run below a folder, read once, without torch and without weights."""

import gc
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.errors import InputError
from so_clip.report.progress_bar import watched
from so_clip.report.variants import variants
from so_clip.results.run_files import (
    ERROR_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    finished_metrics,
    read_object,
    run_folders,
)

# Files are small, and on a network's disk each takes a round trip.
_READERS = 8
# A row of a table; runs that differ in their seed alone are averaged in it. And a run, but for
# what it was tested on afterwards.
ROW = ["backbone", "shots", "method_title", "variant"]
RUN = ["dataset", *ROW, "seed"]
# What metrics.json says that a run was `tested_on`, if it says so.
TEST = "test"


@dataclass(frozen=True)
class Runs:
    """All runs below one folder.

    Attributes:
        results_dir: the folder.
        frame: a row a finished run: the columns of metrics.json (`settings` as a dict), its
            `folder` (str), its `state` ("finished"), `variant` (what sets it apart from other runs
            of its method, "" for nothing), `transferred` (to which datasets, as text), and of
            provenance.json `torch`, `commit`, `hardware`, `torch_threads`, `weights_sha256`,
            `finished_at` and `overrides`, None where it is not there.
        skipped: one line for each folder that is no usable run, and why.
    """

    results_dir: Path
    frame: pd.DataFrame
    skipped: list[str]

    @property
    def counted(self) -> str:
        """How many runs there are, in words."""
        return f"{len(self.frame)} run{'' if len(self.frame) == 1 else 's'}"


def read_runs(results_dir: Path) -> Runs:
    """Read every finished run below `results_dir`.

    Raises:
        InputError: there is no such folder, or no finished run in it.
    """
    if not results_dir.is_dir():
        raise InputError(f"{results_dir}: there is no such folder. Give the one that holds runs.")
    with _no_garbage():
        rows, skipped = _read_all(results_dir)
    rows, other = _tested_on_test_images(rows)
    skipped += other
    if not rows:
        unusable = f" Left out: {' '.join(skipped)}" if skipped else ""
        raise InputError(
            f"{results_dir}: no finished run in it. Start one: python -m so_clip.{unusable}"
        )
    frame = pd.DataFrame(rows)
    frame["variant"] = variants(frame)
    frame["transferred"] = [str(settings.get("transfer")) for settings in frame["settings"]]
    again = _repeats(frame)
    skipped += [f"{folder}: repeats another run." for folder in frame["folder"][again]]
    skipped = [line.encode(errors="backslashreplace").decode() for line in skipped]
    return Runs(results_dir, frame[~again].reset_index(drop=True), skipped)


def _tested_on_test_images(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the runs whose figures are of test images, and a line on the others, if any.

    Those that rates were chosen by are tested on training images, and no results.
    """
    kept = [row for row in rows if row.get("tested_on") in (None, TEST)]
    others = [row for row in rows if row.get("tested_on") not in (None, TEST)]
    if not others:
        return kept, []
    images = ", ".join(sorted({str(row["tested_on"])[:80] for row in others}))
    place = os.path.commonpath([str(Path(row["folder"]).parent) for row in others])
    runs = "1 run" if len(others) == 1 else f"{len(others)} runs"
    return kept, [f"{place}: {runs} not tested on test images but on others ({images})."]


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Do not look for garbage where there is none: of thousands of runs that takes a fifth."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _read_all(results_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row of each usable run, in the order of their folders, and why others are none."""
    skipped: list[str] = []
    rows: list[dict[str, Any]] = []
    folders = sorted(run_folders(results_dir, skipped))
    known: dict[Any, Any] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        read = itertools.chain.from_iterable(pool.map(_rows_or_reasons, _batches(folders)))
        for row in watched(read, "runs", len(folders)):
            if isinstance(row, str):
                skipped.append(row)
            else:
                _share(row["settings"], known)
                rows.append(row)
    return rows, skipped


def transfers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run and dataset that it was transferred to; empty if there is none.

    `dataset` is where it was tested, `variant` begins with where it was trained.
    """
    rows = []
    for run in frame.to_dict("records") if "transfer" in frame else ():
        figures = run.get("transfer")
        for name, each in figures.items() if isinstance(figures, dict) else ():
            variant = ", ".join(filter(None, (f"from {run['dataset']}", run["variant"])))
            keys = ("accuracy_percent", "zero_shot_accuracy_percent")
            accuracies = {key: each.get(key) for key in keys}
            rows.append(run | {"dataset": name, "variant": variant} | accuracies)
    return pd.DataFrame(rows, columns=None if rows else frame.columns).drop_duplicates(RUN)


def _batches(folders: list[str]) -> list[list[str]]:
    """Split what threads share out into pieces that are worth a hand-over."""
    return [folders[at : at + 100] for at in range(0, len(folders), 100)]


def _rows_or_reasons(folders: list[str]) -> list[dict[str, Any] | str]:
    return [_row_or_reason(folder) for folder in folders]


def _row_or_reason(folder: str) -> dict[str, Any] | str:
    """Return a run's row, or the reason why it cannot be used."""
    path = Path(folder)
    try:
        row = _usable(path) | {"folder": folder, "state": "finished"} | _made_by(path)
        json.dumps(row, ensure_ascii=False).encode()
    except InputError as error:
        return str(error)
    except (UnicodeEncodeError, RecursionError):  # such texts cannot be shown or written
        return f"{folder}: a text or its name is no valid Unicode. Rename or repeat it."
    return row


def _share(settings: dict[str, Any], known: dict[Any, Any]) -> None:
    """Let groups of settings be the same objects as those of runs that have the same.

    Thousands of runs take three quarters of the memory then. Nothing may change what it gets.
    """
    for key, value in settings.items():
        if isinstance(value, dict):
            settings[key] = known.setdefault((key, repr(value)), value)


def _usable(folder: Path) -> dict[str, Any]:
    """Return a folder's metrics if it is a finished run that a table can show."""
    if not os.path.lexists(folder / METRICS_FILE):
        raise InputError(_why_unfinished(folder))
    return finished_metrics(folder)


def _why_unfinished(folder: Path) -> str:
    error = read_object(folder / ERROR_FILE)
    if not error:
        return f"{folder}: unfinished, it has no {METRICS_FILE}. Repeat the run."
    message = str(error.get("message")).strip().splitlines()
    return f"{folder}: failed with {error.get('kind')}: {message[0] if message else ''}"


def _made_by(folder: Path) -> dict[str, Any]:
    """Return what provenance.json says of versions, code and hardware."""
    provenance = read_object(folder / PROVENANCE_FILE)
    versions, hardware = provenance.get("versions"), provenance.get("hardware")
    overrides = provenance.get("overrides")
    told = isinstance(overrides, list) and all(isinstance(each, str) for each in overrides)
    threads = hardware.get("torch_threads") if isinstance(hardware, dict) else None
    if isinstance(hardware, dict):
        hardware = ", ".join(str(hardware.get(key)) for key in ("device", "processor"))
    return {
        "torch": versions.get("torch") if isinstance(versions, dict) else None,
        "commit": provenance.get("commit"),
        "hardware": hardware,
        "torch_threads": threads if isinstance(threads, int) else None,
        "weights_sha256": provenance.get("backbone_weights_sha256"),
        "finished_at": provenance.get("finished_at"),
        "overrides": overrides if told else None,
    }


def _repeats(frame: pd.DataFrame) -> pd.Series:
    """Say of each run whether another is the same, and newer or, where neither is, first."""
    finished = frame["finished_at"].map(lambda value: value if isinstance(value, str) else "")
    newest_first = finished.sort_values(ascending=False, kind="stable").index
    return frame.loc[newest_first].duplicated([*RUN, "transferred"]).reindex(frame.index)
