"""Read every run below a folder once, without torch and without weights."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.errors import InputError
from so_clip.report.progress import watched
from so_clip.report.variants import variants
from so_clip.results.run_files import (
    ADAPTER_FROM,
    ERROR_FILE,
    MAX_TEXT,
    METRICS_FILE,
    PROVENANCE_FILE,
    TASK,
    finished_metrics,
    is_texts,
    read_object,
    run_folders,
)
from so_clip.results.scores import SENTENCES, ZERO_SHOT
from so_clip.system.commands import command, override
from so_clip.system.locks import is_locked

# Reading threads: the files are small, and on a network disk every file costs a round trip.
_READERS = 8
# The columns that make a table row; runs that differ only in the seed are averaged in it.
ROW = ["backbone", "shots", "method_title", "variant"]
# The columns that identify a run, except for the datasets it was transferred to.
RUN = ["dataset", *ROW, "seed"]
# The value of `tested_on` in metrics.json for the test set; older runs do not have it.
TEST = "test"


@dataclass(frozen=True)
class Runs:
    """All runs below one folder.

    Attributes:
        results_dir: the folder.
        frame: one line per finished run: the columns of metrics.json (`settings` as a dict), its
            `folder` (str), `variant` (how it differs from other runs of its method; may be
            empty), `transferred` (the datasets it was transferred to, as text), and from
            provenance.json `torch`, `commit`, `hardware`, `torch_threads`, `weights_sha256`,
            `results_version`, `finished_at` and `overrides` (a tuple), None if unknown.
        skipped: one line for each folder that is not a usable run, with the reason.
        evaluations: one line per evaluation of a saved adapter, with the same columns. The
            `variant` begins with the dataset that the adapter was trained on.
        tasks: one line per run of sampled tasks (tasks=N), with the same columns.
    """

    results_dir: Path
    frame: pd.DataFrame
    skipped: list[str]
    evaluations: pd.DataFrame = field(default_factory=pd.DataFrame)
    tasks: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def counted(self) -> str:
        """The number of runs, in words."""
        parts = [_number(len(self.frame), "run")]
        if len(self.tasks):
            parts.append(f"{_number(len(self.tasks), 'run')} of sampled tasks")
        if len(self.evaluations):
            parts.append(f"{_number(len(self.evaluations), 'evaluation')} of saved adapters")
        return ", ".join(parts)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def read_runs(results_dir: Path, folders: Sequence[Path] | None = None) -> Runs:
    """Read every finished run below `results_dir`.

    Args:
        results_dir: the folder of the runs.
        folders: read only these run folders.

    Raises:
        InputError: the folder does not exist, or has no finished run.
    """
    if not results_dir.is_dir():
        raise InputError(f"{results_dir}: there is no such folder. Give the one that holds runs.")
    rows, skipped = _read_all(results_dir, folders)
    rows, other = _on_test_set(rows)
    skipped += other
    if not rows:
        way_out = f"Start one: {command('experiment=demo', override('results_dir', results_dir))}"
        if skipped:
            way_out = f"Left out: {' '.join(skipped)}"
        raise InputError(f"{results_dir}: no finished run in it. {way_out}")
    kinds: dict[str, list[dict[str, Any]]] = {"frame": [], "evaluations": [], "tasks": []}
    for row in rows:
        # They are never averaged or compared with each other.
        kind = "evaluations" if ADAPTER_FROM in row else "tasks" if row.get("tasks") else "frame"
        kinds[kind].append(row)
    frames = {kind: _frame(found, rows, skipped) for kind, found in kinds.items()}
    skipped = [line.encode(errors="backslashreplace").decode() for line in skipped]
    return Runs(results_dir, skipped=skipped, **frames)


def _frame(
    rows: list[dict[str, Any]], all_rows: list[dict[str, Any]], skipped: list[str]
) -> pd.DataFrame:
    """Return the lines of one kind of runs, without repeats, which become `skipped`."""
    columns = None if rows else [*all_rows[0], "variant", "transferred"]
    frame = pd.DataFrame(rows, columns=columns)
    if not rows:
        return frame
    frame = _without_none(frame)
    frame["backbone"] = _backbones(frame)
    frame["variant"] = variants(frame)
    if ADAPTER_FROM in frame:
        trained_on = frame["trained_on"] if "trained_on" in frame else frame["dataset"]
        frame["variant"] = [
            ", ".join(filter(None, (f"trained on {str(dataset)[:80]}", variant)))
            for dataset, variant in zip(trained_on, frame["variant"], strict=True)
        ]
    frame["transferred"] = [str(settings.get("transfer")) for settings in frame["settings"]]
    repeats = _repeats(frame)
    skipped += [f"{folder}: repeats another run." for folder in frame["folder"][repeats]]
    return frame[~repeats].reset_index(drop=True)


def transfers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each run and each dataset it was transferred to.

    `dataset` is the dataset it was tested on; `variant` begins with the one it was trained on.
    """
    rows = []
    for run in frame.to_dict("records") if "transfer" in frame else ():
        transfer = run.get("transfer")
        for name, scores in transfer.items() if isinstance(transfer, dict) else ():
            variant = ", ".join(filter(None, (f"from {run['dataset']}", run["variant"])))
            keys = ("accuracy_percent", "zero_shot_accuracy_percent")
            accuracies = {key: scores.get(key) for key in keys}
            rows.append(run | {"dataset": name, "variant": variant} | accuracies)
    found = pd.DataFrame(rows, columns=None if rows else frame.columns)
    return _without_none(found).drop_duplicates(RUN)


def _backbones(frame: pd.DataFrame) -> pd.Series:
    """Return the backbones; one that has runs on images and on sentences gets two names.

    Tables, averages and tests have one backbone each, so they never have two tasks.
    """
    if TASK not in frame:
        return frame["backbone"]
    on_sentences = frame[TASK] == SENTENCES
    in_both = frame["backbone"].isin(frame.loc[~on_sentences, "backbone"])
    return frame["backbone"].where(~(on_sentences & in_both), frame["backbone"] + " (sentences)")


def _without_none(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with NaN for zero-shot scores of backbones without a text tower."""
    return frame.assign(
        **{
            name: pd.to_numeric(frame[name])
            for name in frame
            if str(name).startswith(ZERO_SHOT) and str(name).endswith("_percent")
        }
    )


def _on_test_set(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the runs that were tested on the test set, and a line about the others, if any.

    Runs that choose a learning rate are tested on training data, so they are no results.
    """
    kept = [row for row in rows if row.get("tested_on") in (None, TEST)]
    others = [row for row in rows if row.get("tested_on") not in (None, TEST)]
    if not others:
        return kept, []
    sets = ", ".join(sorted({str(row["tested_on"])[:80] for row in others}))
    on_sentences = all(row.get(TASK) == SENTENCES for row in others)
    items = "sentences" if on_sentences else "images"
    place = os.path.commonpath([str(Path(row["folder"]).parent) for row in others])
    runs = "1 run" if len(others) == 1 else f"{len(others)} runs"
    return kept, [f"{place}: {runs} not tested on test {items} but on others ({sets})."]


def _read_all(
    results_dir: Path, chosen: Sequence[Path] | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each usable run, sorted by folder, and a reason for each other folder."""
    skipped: list[str] = []
    rows: list[dict[str, Any]] = []
    found = run_folders(results_dir, skipped) if chosen is None else map(str, chosen)
    folders = sorted(found)
    with ThreadPoolExecutor(_READERS) as pool:
        for row in watched(pool.map(_row_or_reason, folders), "runs", len(folders)):
            if isinstance(row, str):
                skipped.append(row)
            else:
                rows.append(row)
    return rows, skipped


def _row_or_reason(folder: str) -> dict[str, Any] | str:
    """Return a run's row, or the reason why it cannot be used."""
    path = Path(folder)
    try:
        row = _usable(path) | {"folder": folder} | _provenance(path)
        json.dumps(row, ensure_ascii=False).encode()
    except InputError as error:
        return str(error)
    except UnicodeEncodeError:  # such texts can neither be shown nor written
        return f"{folder}: a text or its name is no valid Unicode. Rename or repeat it."
    return row


def _usable(folder: Path) -> dict[str, Any]:
    """Return a folder's metrics if it is a finished run that a table can show."""
    if os.path.lexists(folder / METRICS_FILE):
        return finished_metrics(folder)
    error = read_object(folder / ERROR_FILE)
    if not error:
        if is_locked(folder):
            raise InputError(f"{folder}: still running.")
        raise InputError(f"{folder}: unfinished, it has no {METRICS_FILE}. Repeat the run.")
    message = str(error.get("message")).strip().splitlines()
    raise InputError(f"{folder}: failed with {error.get('kind')}: {message[0] if message else ''}")


def _provenance(folder: Path) -> dict[str, Any]:
    """Return the versions, code and hardware in provenance.json."""
    provenance = read_object(folder / PROVENANCE_FILE)
    versions, hardware = provenance.get("versions"), provenance.get("hardware")
    threads = hardware.get("torch_threads") if isinstance(hardware, dict) else None
    if isinstance(hardware, dict):
        hardware = ", ".join(str(hardware.get(key)) for key in ("device", "processor"))
    version, overrides = provenance.get("results_version"), provenance.get("overrides")
    found = {
        "torch": versions.get("torch") if isinstance(versions, dict) else None,
        "commit": provenance.get("commit"),
        "hardware": hardware,
        "torch_threads": threads if isinstance(threads, int) else None,
        "weights_sha256": provenance.get("backbone_weights_sha256"),
        "results_version": version if type(version) is int else None,
        "finished_at": provenance.get("finished_at"),
        "overrides": tuple(overrides) if overrides and is_texts(overrides) else None,
    }
    return {key: value if len(str(value)) <= MAX_TEXT else None for key, value in found.items()}


def _repeats(frame: pd.DataFrame) -> pd.Series:
    """Return for each run whether another run is the same and newer (or earlier in the order)."""
    finished = frame["finished_at"].map(lambda value: value if isinstance(value, str) else "")
    newest_first = finished.sort_values(ascending=False, kind="stable").index
    return frame.loc[newest_first].duplicated([*RUN, "transferred"]).reindex(frame.index)
