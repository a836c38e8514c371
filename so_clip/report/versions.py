"""Notes below a table about runs that were made in different ways."""

import re

import pandas as pd

from so_clip.report.variants import AS_OF
from so_clip.results.run_files import SKIPPED
from so_clip.version import RESULTS_VERSION

# Columns of the runs, and their names in a note.
_NOTED = {
    "torch": "versions of torch",
    "commit": "commits of the code",
    "hardware": "kinds of hardware",
}
# Columns that training seconds depend on.
_TIMING = ("torch_threads", "processes", "hardware")
# Further values are only counted.
_MAX_VALUES = 5


def version_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each of torch, commit and hardware that differs between runs.

    Further sentences count runs of an older results version and runs of uncommitted code.
    """
    notes = []
    for column, title in _NOTED.items():
        if column not in runs:
            continue
        counts = runs[column].fillna("unknown").value_counts()
        if len(counts) > 1:
            named = [f"{_short(name)} ({count})" for name, count in counts[:_MAX_VALUES].items()]
            more = len(counts) - _MAX_VALUES
            rest = f" and {more} others" if more > 0 else ""
            notes.append(f"The runs used {len(counts)} {title}: {', '.join(named)}{rest}.")
    if "results_version" in runs:
        older = int((pd.to_numeric(runs["results_version"]) < RESULTS_VERSION).sum())
        if older:
            notes.append(
                f"{older} of {len(runs)} runs are of an older results version than "
                f"{RESULTS_VERSION}: the present code may give other values."
            )
    if "commit" in runs:
        dirty = sum(str(commit).endswith("-dirty") for commit in runs["commit"])
        if dirty:
            notes.append(f"{dirty} of {len(runs)} runs used code with uncommitted changes.")
    return notes


def contents_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if a row is named by the date of a file's contents, else nothing."""
    options = ("split", "weights", "prompts")
    found = [name for name in options if runs["variant"].str.contains(f"{name}={AS_OF}").any()]
    if not found:
        return []
    return [
        f'The contents of {" and ".join(found)} changed between runs. "{AS_OF.strip()}" names '
        "the contents by the time at which the first run with them finished."
    ]


def skipped_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if runs skipped corrupt images (on_corrupt=skip), else nothing."""
    keys = {key: split for split, key in SKIPPED.items() if key in runs}
    counts = runs[list(keys)].apply(pd.to_numeric).fillna(0)
    affected = int((counts > 0).any(axis=1).sum())
    if not affected:
        return []
    most = " and ".join(
        f"{count:.0f} {'training' if keys[key] == 'train' else 'test'} images"
        for key, count in counts.max().items()
        if count
    )
    return [
        f"{affected} of {len(runs)} runs skipped corrupt images, up to {most}: see "
        "skipped.csv in their folders."
    ]


def seconds_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if training seconds were measured under different conditions."""
    timed = runs[runs["train_seconds"] > 0] if "train_seconds" in runs else runs.iloc[:0]
    different = []
    for column in filter(timed.__contains__, _TIMING):
        # Older runs did not record the number of processes.
        known = timed[column].fillna(1 if column == "processes" else "unknown")
        names = sorted({f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in known})
        if len(names) > 1:
            title = column.removeprefix("torch_")
            different.append(title if column == "hardware" else f"{title} ({', '.join(names)})")
    if not different:
        return []
    return [
        f"Training seconds were measured with different {', '.join(different)}: none is marked as "
        "best."
    ]


def _short(value: object) -> str:
    """Cut a commit's forty digits to twelve."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}(?=-|$)", r"\1", str(value))
