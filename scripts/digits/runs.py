"""Runs with the embedded CLIP, by default on digits, at rates chosen on training images."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.examples import Example, Splits
from so_clip.data.run_data import Data, gather

RESULTS = Path(__file__).resolve().parents[2] / "results"
# As in the demo: a mirrored or halved digit is no digit.
COMMON = ("backbone=tiny", "threads=1", "augment.scale=[0.6,1.0]", "augment.flip=false")
# The tried learning rates are these multiples of the method's default: first START, then both
# neighbours of the best so far.
RATES: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
START: tuple[float, ...] = (1, 3, 10)

Row = dict[str, Any]
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One run."""

    overrides: Overrides
    runs: Path
    classes: int | None = None  # only the first classes; None: all
    left_over: bool = False  # test on training images that were not drawn


class Pool:
    """Does runs in several processes and shows the progress."""

    def __init__(self, executor: Any, runs: Path) -> None:
        self.executor = executor
        self.runs = runs

    def rows(
        self, title: str, contenders: Iterable[Overrides], classes: int | None = None
    ) -> list[Row]:
        """Return a row for each run, in order."""
        work = [Work(overrides, self.runs / title, classes) for overrides in contenders]
        return self._do(title, work)

    def with_rates(
        self, contenders: Sequence[Overrides], tuning: Overrides, classes: int | None = None
    ) -> list[Overrides]:
        """Return the contenders with the best learning rate for each that trains.

        The best rate has the highest accuracy on training images that the draw of `tuning` left
        over; no validation or test image is used. Among equal rates, the smallest is taken.
        """
        tried = self.tune(contenders, tuning, classes)
        chosen = {run: own_rate(run) * best(rates) for run, rates in tried.items()}
        return [
            (*run, f"optimizer.lr={chosen[run]:g}") if run in chosen else run for run in contenders
        ]

    def tune(
        self,
        contenders: Iterable[Overrides],
        tuning: Overrides,
        classes: int | None = None,
        start: Sequence[float] | Mapping[Overrides, Sequence[float]] | None = None,
        tries: int | None = None,
    ) -> dict[Overrides, dict[float, float]]:
        """Return the accuracy in percent at each tried rate, for each contender that trains.

        Rates are multiples of the contender's default.

        Args:
            contenders, tuning, classes: see `with_rates`.
            start: the first multiples, for all contenders or for each; None: START.
            tries: rates that each contender tries in all; each further try is the untried rate
                nearest to the best so far. None: until both neighbours of the best are tried.
        """
        defaults = {run: rate for run in dict.fromkeys(contenders) if (rate := own_rate(run))}
        tried: dict[Overrides, dict[float, float]] = {run: {} for run in defaults}
        starts = start if isinstance(start, Mapping) else dict.fromkeys(defaults, start or START)
        missing = [(run, times) for run in defaults for times in starts[run]]
        while missing:
            work = [
                Work(
                    (*run, *tuning, f"optimizer.lr={defaults[run] * times:g}"),
                    self.runs / "rates",
                    classes,
                    left_over=True,
                )
                for run, times in missing
            ]
            for (run, times), row in zip(missing, self._do("rates", work), strict=True):
                tried[run][times] = row["accuracy_percent"]
            missing = [(run, times) for run in defaults for times in _next(tried[run], tries)]
        return tried

    def _do(self, title: str, work: Sequence[Work]) -> list[Row]:
        jobs = [self.executor.submit(do, run) for run in work]
        return [job.result() for job in tqdm(jobs, title, unit="run", dynamic_ncols=True)]


@contextmanager
def pool(runs: Path, workers: int | None = None) -> Iterator[Pool]:
    """Open a pool of as many processes as there are cores, or `workers`."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as executor:
        yield Pool(executor, runs)


def steps(method: str, max_steps: int) -> Overrides:
    """Return the overrides for this many steps; none for a method that does not train."""
    if not settings_of((f"method={method}",)).trains:
        return ()
    return (f"schedule.max_steps={max_steps}", "schedule.stop_loss=0")


def settings_of(overrides: Iterable[str], results_dir: Path = RESULTS) -> Settings:
    """Compose the settings of a run, by default on digits."""
    return from_config(compose([*COMMON, *overrides, f"results_dir={results_dir}"]))


def do(work: Work) -> Row:
    """Do one run, unless it is finished, and return its settings and scores."""
    from so_clip.run import run
    from so_clip.runtime.device import cpu_threads

    # A separate folder, so that people can distinguish these runs.
    runs = work.runs if work.classes is None else work.runs / f"{work.classes}_classes"
    settings = settings_of(work.overrides, runs)
    data = gather(settings.data)
    if work.left_over:
        data = _tested_on_training_images(data)
    if work.classes is not None:
        data = _of_first_classes(data, work.classes)
    with cpu_threads(settings.placement.threads):
        return _scores(settings, run(settings, data).metrics)


def own_rate(overrides: Overrides) -> float:
    """Return a contender's default learning rate, 0 if it trains nothing."""
    optimizer = settings_of(overrides).method.optimizer
    return optimizer.options["lr"] if optimizer else 0.0


def best(accuracies: Mapping[float, float]) -> float:
    """Return the rate with the highest accuracy; among equal rates, the smallest."""
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def _next(accuracies: dict[float, float], tries: int | None) -> list[float]:
    """Return the next rates: the best's untried neighbours, or the untried rate nearest to it."""
    place = RATES.index(best(accuracies))
    if tries is None:
        return [times for times in RATES[max(place - 1, 0) : place + 2] if times not in accuracies]
    untried = [i for i, times in enumerate(RATES) if times not in accuracies]
    if len(accuracies) >= tries or not untried:
        return []
    return [RATES[min(untried, key=lambda i: (abs(i - place), -i))]]


def _tested_on_training_images(data: Data) -> Data:
    """Replace the test images by the training images that were not drawn."""
    drawn = {example.path for example in data.few_shot.train} if data.few_shot else set()
    rest = [example for example in data.splits.train if example.path not in drawn]
    return replace(data, splits=replace(data.splits, test=rest), tested_on="training")


def _of_first_classes(data: Data, count: int) -> Data:
    """Keep only the first classes, for training and for the test."""

    def keep(examples: Sequence[Example]) -> list[Example]:
        return [example for example in examples if example.label < count]

    lists = data.splits
    splits: Splits = replace(
        lists,
        train=keep(lists.train),
        val=keep(lists.val),
        test=keep(lists.test),
        class_names=lists.class_names[:count],
    )
    few_shot = data.few_shot
    if few_shot:
        few_shot = replace(few_shot, train=keep(few_shot.train), val=keep(few_shot.val))
    return replace(data, splits=splits, few_shot=few_shot)


def _scores(settings: Settings, metrics: Row) -> Row:
    optimizer = settings.method.optimizer.options if settings.method.optimizer else {}
    scores = (
        "zero_shot_accuracy_percent",
        "accuracy_percent",
        "expected_calibration_error_percent",
        "trainable_parameters",
        "steps",
        "train_seconds",
        "peak_memory_mib",
        "final_loss",
    )
    return {
        **{key: metrics[key] for key in ("method", "method_title", "shots", "seed")},
        **{key: optimizer.get(key) for key in ("lr", "density_ratio", "T")},
        **{key: metrics[key] for key in scores},
    }
