"""Runs the public commands of so_clip in processes of their own, and reads what they leave."""

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.smat.plan import ALL_WAY, COMMON, EPISODES, SHOTS, Contender, Datasets, Sizes, Words
from so_clip.results.run_files import METRICS_FILE, SMAT_FILE, TASKS_TABLE
from so_clip.system.commands import shell_word

ROOT = Path(__file__).resolve().parents[2]
_KEYS = ("dataset", "seed", "accuracy_percent", "train_seconds", "trainable_parameters", "steps")


class Failed(RuntimeError):
    """A command failed; the message has the command and its last lines."""


class Unfinished(RuntimeError):
    """A command is not finished, and none may be started."""


@dataclass(frozen=True)
class Place:
    """Where the experiment reads and writes.

    Attributes:
        data: the rendered datasets.
        runs: the folder of all runs.
        only_finished: start no command; use those that are finished.
    """

    data: Path
    runs: Path
    only_finished: bool = False

    @property
    def words(self) -> Words:
        """The options of every command."""
        return (*COMMON, f"data_root={self.data}", f"cards_dir={self.data / 'cards'}")

    def folder(self, section: str, name: str, words: Words) -> Path:
        """Return the folder of a command's runs; other words have another folder."""
        return self.runs / section / f"{name}-{zlib.crc32(' '.join(words).encode()):08x}"

    def call(self, command: Words, words: Words, folder: Path) -> None:
        """Run a command and note its seconds; finished runs are skipped by the command itself.

        Raises:
            Failed: it ended with an error.
            Unfinished: see `only_finished`.
        """
        done = folder / "seconds.json"
        if done.exists():
            return
        if self.only_finished:
            raise Unfinished(folder.name)
        line = [sys.executable, "-m", "so_clip", *command, *self.words, *words]
        line.append(f"results_dir={folder}")
        start = time.perf_counter()
        print(" ".join(map(shell_word, line[1:])), flush=True)
        result = subprocess.run(
            line,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
            capture_output=True,
            check=False,
        )
        if result.returncode:
            last = "\n".join((result.stdout + result.stderr).splitlines()[-25:])
            raise Failed(
                f"{' '.join(map(shell_word, line))}\nended with {result.returncode}:\n{last}"
            )
        done.write_text(json.dumps(time.perf_counter() - start), encoding="utf-8")


def meta_train(place: Place, name: str, words: Words, sources: Sequence[str]) -> Path:
    """Meta-train, unless it is done, and return the run's folder."""
    asked = (*words, f"sources=[{','.join(sources)}]", "targets=[]", "test_tasks=0")
    folder = place.folder("meta", name, asked)
    place.call(("meta",), asked, folder)
    (found,) = folder.glob(f"*/{SMAT_FILE}")
    return found.parent


@dataclass(frozen=True)
class Contest:
    """Chooses the rate of a contender, and then runs it on the targets.

    Attributes:
        place, sizes, datasets: of the experiment.
        checkpoints: the run folders of meta-trainings, by name.
    """

    place: Place
    sizes: Sizes
    datasets: Datasets
    checkpoints: dict[str, Path]

    def tune(self, contender: Contender) -> float | None:
        """Return the rate with the best mean accuracy on validation images; None without rates.

        The tasks are others than those of the test. Among equal rates, the smallest is taken.
        """
        if not contender.rates:
            return None
        words = (
            *self._words(contender),
            *EPISODES,
            f"tasks={self.sizes.tuning_tasks}",
            "seed=0",
            f"dataset={','.join(self.datasets.tuning)}",
            f"optimizer.lr={','.join(f'{rate:g}' for rate in contender.rates)}",
        )
        rows = self._rows("rates", contender, words)
        means = rows.groupby("lr")["accuracy_percent"].mean()
        return float(means.sort_index(kind="stable").idxmax())

    def tasks(self, contender: Contender, rate: float | None, count: int) -> pd.DataFrame:
        """Return the accuracy of each of `count` test tasks of each target."""
        words = (
            *self._words(contender, rate),
            *EPISODES,
            f"tasks={count}",
            "seed=1",
            f"dataset={','.join(self.datasets.targets)}",
        )
        frames = []
        for run in self._run("tasks", contender, words):
            own = pd.read_csv(run / TASKS_TABLE)  # accuracy and seconds are those of each task
            of_run = _metrics(run)
            same = {key: of_run[key] for key in of_run if key not in own}
            frames.append(own.assign(**same, contender=contender.name))
        return pd.concat(frames, ignore_index=True)

    def all_way(self, contender: Contender, rate: float | None) -> pd.DataFrame:
        """Return the accuracy on all classes of a target, for some targets and each seed."""
        targets = [name for name in ALL_WAY if name in self.datasets.targets]
        words = (
            *self._words(contender, rate),
            f"shots={SHOTS}",
            f"seed={','.join(map(str, self.sizes.seeds))}",
            f"dataset={','.join(targets)}",
        )
        return self._rows("all_way", contender, words).assign(contender=contender.name)

    def _words(self, contender: Contender, rate: float | None = None) -> Words:
        words = list(contender.words)
        if contender.checkpoint:
            words.append(f"adapter.checkpoint={self.checkpoints[contender.checkpoint]}")
        if contender.rates:
            words += [f"schedule.max_steps={self.sizes.steps}", "schedule.stop_loss=0"]
            words.append("schedule.batch_size=16")
        if rate is not None:
            words.append(f"optimizer.lr={rate:g}")
        return tuple(words)

    def _rows(self, section: str, contender: Contender, words: Words) -> pd.DataFrame:
        return pd.DataFrame([_metrics(run) for run in self._run(section, contender, words)])

    def _run(self, section: str, contender: Contender, words: Words) -> list[Path]:
        folder = self.place.folder(section, contender.name, words)
        self.place.call(("-m",), words, folder)
        return sorted(file.parent for file in folder.glob(f"*/{METRICS_FILE}"))


def _metrics(run: Path) -> dict[str, Any]:
    """Return the columns of a run."""
    metrics = json.loads((run / METRICS_FILE).read_text(encoding="utf-8"))
    optimizer = metrics["settings"]["optimizer"] or {}
    found = {key: metrics[key] for key in _KEYS}
    return {**found, "lr": optimizer.get("lr")}
