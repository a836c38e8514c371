"""Notes below a table about runs that were made in different ways."""

import pandas as pd

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


def skipped_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if runs skipped corrupt images (on_corrupt=skip), else nothing."""
    counts = {
        split: pd.to_numeric(runs[key]).fillna(0) for split, key in SKIPPED.items() if key in runs
    }
    affected = sum((count > 0 for count in counts.values()), pd.Series(False, index=runs.index)) > 0
    if not affected.any():
        return []
    most = " and ".join(
        f"{count.max():.0f} {'training' if split == 'train' else split} images"
        for split, count in counts.items()
        if count.any()
    )
    return [
        f"{affected.sum()} of {len(runs)} runs skipped corrupt images, up to {most}: see "
        "skipped.csv in their folders."
    ]


def seconds_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if training seconds were measured under different conditions."""
    timed = runs[runs["train_seconds"] > 0] if "train_seconds" in runs else runs.iloc[:0]
    different = []
    for column in _TIMING:
        if column not in timed:
            continue
        values = timed[column]
        if column == "processes":  # older runs did not record it
            values = values.fillna(1)
        names = sorted({_plain(value) for value in values})
        if len(names) > 1:
            title = column.removeprefix("torch_")
            different.append(title if column == "hardware" else f"{title} ({', '.join(names)})")
    if not different:
        return []
    return [
        f"Training seconds were measured with different {', '.join(different)}: none is marked as "
        "best."
    ]


def _plain(value: object) -> str:
    if isinstance(value, (int, float)):
        return f"{value:g}" if value == value else "unknown"
    return "unknown" if value is None else str(value)


def _short(value: object) -> str:
    """Cut a commit's forty digits to twelve."""
    digits, dash, dirty = str(value).partition("-")
    is_commit = len(digits) == 40 and all(digit in "0123456789abcdef" for digit in digits)
    return digits[:12] + dash + dirty if is_commit else str(value)
