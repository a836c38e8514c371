"""Runs on sentences in several processes, and the rows that they leave."""

import gc
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from scripts.rte.plan import Words, Work
from so_clip.errors import InputError
from so_clip.results.run_files import finished_metrics, run_folders

_KEYS = (
    *("method", "backbone", "seed", "subset", "tested_on", "test_images", "accuracy_percent"),
    *("accuracy_low_percent", "accuracy_high_percent", "majority_percent", "truncated_test"),
    *("steps", "stop_reason", "final_loss", "trainable_parameters", "train_seconds"),
    "peak_memory_mib",
)


@dataclass(frozen=True)
class Pool:
    """Does runs in several processes and shows the progress.

    Attributes:
        executor: of the processes.
        runs: the folder of all runs.
        words: the options of every run.
        until: the time (`time.time`) after which no run is started.
    """

    executor: Any
    runs: Path
    words: Words
    until: float

    def do(self, title: str, work: Sequence[Work]) -> None:
        """Do the runs that are not finished. The error of one is raised after the last one."""
        jobs = [
            self.executor.submit(
                do,
                (*each.words, *self.words, f"results_dir={self.runs / each.section}"),
                self.until,
            )
            for each in work
        ]
        errors = [error for job in tqdm(jobs, title, unit="run") if (error := job.exception())]
        if errors:
            raise errors[0]


@contextmanager
def pool(runs: Path, words: Words, workers: int, until: float) -> Iterator[Pool]:
    """Open a pool of processes."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        try:
            yield Pool(executor, runs, words, until)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def do(overrides: Words, until: float) -> None:
    """Do one run, unless it is finished or the time is over."""
    if time.time() > until:
        return
    from so_clip.config.compose import compose
    from so_clip.config.sentence_parse import sentence_settings
    from so_clip.config.trees import SENTENCES
    from so_clip.data.sentences.read import gather_sentences
    from so_clip.runtime.device import cpu_threads
    from so_clip.sentences.run import run_sentences

    settings = sentence_settings(compose(overrides, tree=SENTENCES))
    with cpu_threads(settings.placement.threads):
        run_sentences(settings, gather_sentences(settings.data))
    gc.collect()  # a run's model and its optimizer refer to each other


def finished(runs: Path, section: str) -> pd.DataFrame:
    """Return one row for each finished run of a section, with its folder and settings."""
    rows = []
    for folder in sorted(run_folders(runs / section, [])):
        try:
            metrics = finished_metrics(Path(folder))
        except InputError:  # it is unfinished or failed
            continue
        settings = metrics["settings"]
        adapter, optimizer = settings["adapter"] or {}, settings["optimizer"] or {}
        rows.append(
            {
                **{key: metrics[key] for key in _KEYS},
                **{key: optimizer.get(key) for key in ("lr", "density_ratio", "T")},
                "rank": adapter.get("rank"),
                "max_steps": settings["schedule"]["max_steps"],
                "folder": folder,
            }
        )
    return pd.DataFrame(rows)
