"""What runs of one table were made with, where that is not the same for all of them."""

import pandas as pd

from so_clip.results.run_files import SKIPPED

# Columns of the runs, and what they are called.
_OF_INTEREST = {
    "torch": "versions of torch",
    "commit": "commits of the code",
    "hardware": "kinds of hardware",
}
# What seconds depend on, besides the work.
_OF_SECONDS = {
    "torch_threads": "threads",
    "processes": "processes",
    "hardware": "hardware",
}
# More are only counted.
_SHOWN = 5


def version_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each of version, commit and hardware that differs between runs.

    One more says that the code had changes that no commit holds.
    """
    notes = []
    for column, title in _OF_INTEREST.items():
        if column not in runs:
            continue
        counts = runs[column].fillna("unknown").value_counts()
        if len(counts) > 1:
            named = [f"{_short(name)} ({count})" for name, count in counts.head(_SHOWN).items()]
            more = f" and {len(counts) - _SHOWN} others" if len(counts) > _SHOWN else ""
            notes.append(
                f"The runs were made with {len(counts)} {title}: {', '.join(named)}{more}."
            )
    if "commit" in runs:
        dirty = sum(str(commit).endswith("-dirty") for commit in runs["commit"])
        if dirty:
            notes.append(
                f"{dirty} of {len(runs)} runs were made by code with changes that no commit holds."
            )
    return notes


def skipped_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if runs passed over corrupt images (on_corrupt=skip), else none."""
    counts = {
        split: pd.to_numeric(runs[key]).fillna(0) for split, key in SKIPPED.items() if key in runs
    }
    some = sum((count > 0 for count in counts.values()), pd.Series(False, index=runs.index)) > 0
    if not some.any():
        return []
    most = " and ".join(
        f"{count.max():.0f} {'training' if split == 'train' else split} images"
        for split, count in counts.items()
        if count.any()
    )
    return [
        f"{some.sum()} of {len(runs)} runs passed over corrupt images, up to {most}: skipped.csv "
        "in their folders names them."
    ]


def seconds_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if runs took their training seconds with what is not alike, else none."""
    timed = runs[runs["train_seconds"] > 0] if "train_seconds" in runs else runs.iloc[:0]
    differ = []
    for column, title in _OF_SECONDS.items():
        if column not in timed:
            continue
        values = timed[column]
        if column == "processes":  # that older runs did not count
            values = values.fillna(1)
        names = sorted({_plain(value) for value in values})
        if len(names) > 1:
            differ.append(title if column == "hardware" else f"{title} ({', '.join(names)})")
    if not differ:
        return []
    return [f"Training seconds were taken with different {', '.join(differ)}: none is the best."]


def _plain(value: object) -> str:
    if isinstance(value, (int, float)):
        return f"{value:g}" if value == value else "unknown"
    return "unknown" if value is None else str(value)


def _short(value: object) -> str:
    """Cut a commit's forty digits to twelve."""
    text = str(value)
    digits, dash, dirty = text.partition("-")
    is_commit = len(digits) == 40 and all(digit in "0123456789abcdef" for digit in digits)
    return digits[:12] + dash + dirty if is_commit else text
