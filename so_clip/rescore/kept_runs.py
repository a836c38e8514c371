"""Finished runs with kept logits, and the check that logits and run belong together."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.errors import InputError
from so_clip.results.logits_file import LOGITS_FILE, KeptLogits, logits_file, read_logits
from so_clip.results.run_files import (
    METRICS_FILE,
    PER_CLASS_FILE,
    TASK,
    finished_metrics,
    read_columns,
    run_folders,
)
from so_clip.results.scores import SENTENCES

_OTHER_TEST_SET = re.compile(re.escape(LOGITS_FILE).replace(r"\.", r"_(.+)\."))

_NO_LOGITS = (
    "keep no logits, so nothing can be scored again. Their accuracies and calibration errors are "
    f"in {METRICS_FILE}. Give runs on images."
)


class _OnSentences(InputError):
    """The run is one on sentences."""


@dataclass(frozen=True, eq=False)
class KeptRun:
    """A finished run with kept logits.

    Attributes:
        folder: of the run.
        metrics: the content of its metrics.json.
        test_sets: the names of the test sets with kept logits; "" is the run's own.
        is_named: whether the user named this folder, and not a folder of runs.
    """

    folder: Path
    metrics: dict[str, Any]
    test_sets: tuple[str, ...]
    is_named: bool

    def read(self, test_set: str) -> KeptLogits:
        """Return the kept logits of a test set, checked against the other files of the run.

        Raises:
            InputError: a file cannot be used, or the logits are those of another run or test set.
        """
        path = self.folder / logits_file(test_set)
        kept = read_logits(path)
        if kept.run_fingerprint != self.metrics.get("run_fingerprint"):
            raise InputError(
                f"{path}: these are the logits of another run: its run_fingerprint is not that of "
                f"{self.folder / METRICS_FILE}. Put the run's own file there, or repeat the run."
            )
        name = PER_CLASS_FILE.replace(".", f"_{test_set}.") if test_set else PER_CLASS_FILE
        images_K = read_columns(self.folder / name, whole=("images",))["images"]
        if len(images_K) != kept.classes:
            raise InputError(
                f"{path}: has logits of {kept.classes} classes, and {self.folder / name} lists "
                f"{len(images_K)}. Put the run's own files there, or repeat the run."
            )
        if (np.bincount(kept.label_N, minlength=kept.classes) != images_K).any():
            raise InputError(
                f"{path}: its labels are not those of {self.folder / name}. Put the run's own "
                "files there, or repeat the run."
            )
        return kept


def find_runs(places: Sequence[Path], left_out: list[str]) -> Iterator[KeptRun]:
    """Yield the runs with kept logits in some places, each once.

    Args:
        places: run folders, and folders of runs.
        left_out: gets one line for each run without kept logits in a folder of runs, and for each
            unfinished run there.

    Raises:
        InputError: a place is no folder, or is a run that cannot be used.
    """
    seen = set()
    for place in places:
        if not place.is_dir():
            problem = "is a file" if place.exists() else "there is no such folder"
            raise InputError(f"{place}: {problem}. Give run folders, or a folder of runs.")
        found = sorted(run_folders(place, left_out))
        if not found:
            raise InputError(f"{place}: no run in it. Give a run folder, or a folder of runs.")
        for folder in map(Path, found):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                yield _run(folder, folder == place)
            except InputError as error:
                if folder == place:
                    raise
                if isinstance(error, _OnSentences):  # one line for all of them
                    error = _OnSentences(f"{place}: runs on sentences {_NO_LOGITS}")
                if str(error) not in left_out:
                    left_out.append(str(error))


def _run(folder: Path, is_named: bool) -> KeptRun:
    if not (folder / METRICS_FILE).exists():
        raise InputError(f"{folder}: unfinished, it has no {METRICS_FILE}. Repeat the run.")
    metrics = finished_metrics(folder)
    if tasks := metrics.get("tasks"):
        raise InputError(
            f"{folder}: the run has {str(tasks)[:20]} sampled tasks, and keeps no logits of them. "
            "Give runs without tasks."
        )
    files = sorted(path.name for path in folder.iterdir())
    others = [match[1] for name in files if (match := _OTHER_TEST_SET.fullmatch(name))]
    own = [""] if LOGITS_FILE in files else []
    if not own and not others and metrics.get(TASK) == SENTENCES:
        raise _OnSentences(f"{folder}: runs on sentences {_NO_LOGITS}")
    if not own and not others:
        read_logits(folder / LOGITS_FILE)  # raises the message about a missing file
    return KeptRun(folder, metrics, (*own, *others), is_named)
