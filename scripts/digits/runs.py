"""Runs with the embedded CLIP, on digits unless told, at rates chosen on training images."""

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
from so_clip.config.settings import Settings, from_config
from so_clip.data.examples import Example, Splits
from so_clip.data.run_data import Data, gather

RESULTS = Path(__file__).resolve().parents[2] / "results"
# As in the demo: digits lose their meaning when mirrored or cut in half.
COMMON = (
    *("backbone=tiny", "threads=1", "augment.scale=[0.6,1.0]"),
    "augment.flip=false",
)
# A rate is looked for among these multiples of the method's own: first at START, then to both sides
# of the best so far.
RATES: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
START: tuple[float, ...] = (1, 3, 10)

Row = dict[str, Any]
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One run: its overrides, how many classes (all if None), and what it is tested on."""

    overrides: Overrides
    runs: Path
    classes: int | None = None
    left_over: bool = False  # training images that were not drawn, in place of the test images


class Pool:
    """Does runs in several processes and shows how far it is."""

    def __init__(self, executor: Any, runs: Path) -> None:
        self.executor = executor
        self.runs = runs

    def rows(
        self, title: str, contenders: Iterable[Overrides], classes: int | None = None
    ) -> list[Row]:
        """Return a row for each run, in order."""
        return self._do(title, [Work(each, self.runs / title, classes) for each in contenders])

    def with_rates(
        self, contenders: Sequence[Overrides], tuning: Overrides, classes: int | None = None
    ) -> list[Overrides]:
        """Return the contenders that train with the rate that is best for each, others as they are.

        Best is the accuracy on training images that the draw of `tuning` left over; no validation
        or test image takes part. Of equal ones the smallest is taken.
        """
        tried = self.tune(contenders, tuning, classes)
        chosen = {each: own_rate(each) * best(rates) for each, rates in tried.items()}
        return [
            (*each, f"optimizer.lr={chosen[each]:g}") if each in chosen else each
            for each in contenders
        ]

    def tune(
        self,
        contenders: Iterable[Overrides],
        tuning: Overrides,
        classes: int | None = None,
        start: Sequence[float] | Mapping[Overrides, Sequence[float]] | None = None,
        tries: int | None = None,
    ) -> dict[Overrides, dict[float, float]]:
        """Return the accuracy in percent at each rate tried, of each contender that trains.

        Rates are multiples of the contender's own.

        Args:
            contenders, tuning, classes: see `with_rates`.
            start: the multiples that are tried first, of all contenders or of each; None is START.
            tries: how many rates each may try in all, always the untried one that is nearest to
                the best so far; None goes on until both neighbours of the best are tried.
        """
        own = {each: rate for each in dict.fromkeys(contenders) if (rate := own_rate(each))}
        tried: dict[Overrides, dict[float, float]] = {each: {} for each in own}
        starts = start if isinstance(start, Mapping) else dict.fromkeys(own, start or START)
        missing = [(each, times) for each in own for times in starts[each]]
        while missing:
            work = [
                Work(
                    (*each, *tuning, f"optimizer.lr={own[each] * times:g}"),
                    *(self.runs / "rates", classes, True),
                )
                for each, times in missing
            ]
            for (each, times), row in zip(missing, self._do("rates", work), strict=True):
                tried[each][times] = row["accuracy_percent"]
            missing = [(each, times) for each in own for times in _next(tried[each], tries)]
        return tried

    def _do(self, title: str, work: Sequence[Work]) -> list[Row]:
        jobs = [self.executor.submit(do, each) for each in work]
        return [job.result() for job in tqdm(jobs, title, unit="run", dynamic_ncols=True)]


@contextmanager
def pool(runs: Path, workers: int | None = None) -> Iterator[Pool]:
    """Open a pool of as many processes as there are cores, or `workers`."""
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as each:
        yield Pool(each, runs)


def steps(method: str, max_steps: int) -> Overrides:
    """Return overrides that give a method this many steps, if it takes any."""
    if not settings_of((f"method={method}",)).trains:
        return ()
    return (f"schedule.max_steps={max_steps}", "schedule.stop_loss=0")


def settings_of(overrides: Iterable[str], results_dir: Path = RESULTS) -> Settings:
    """Compose the settings of a run, on digits where no dataset is named."""
    return from_config(compose([*COMMON, *overrides, f"results_dir={results_dir}"]))


def do(work: Work) -> Row:
    """Do one run, unless it is done, and return its settings and figures."""
    from so_clip.run import run
    from so_clip.runtime.device import cpu_threads

    # So that people, too, tell those runs apart.
    runs = work.runs if work.classes is None else work.runs / f"{work.classes}_classes"
    settings = settings_of(work.overrides, runs)
    data = gather(settings.data)
    if work.left_over:
        data = _tested_on_training_images(data)
    if work.classes is not None:
        data = _of_first_classes(data, work.classes)
    with cpu_threads(settings.placement.threads):
        return dict(_figures(settings, run(settings, data).metrics))


def own_rate(overrides: Overrides) -> float:
    """Return the rate that a contender has by itself, 0 if it trains nothing."""
    optimizer = settings_of(overrides).method.optimizer
    return optimizer.options["lr"] if optimizer else 0.0


def best(accuracies: Mapping[float, float]) -> float:
    """Return the rate with the highest accuracy, of equal ones the smallest."""
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def _next(accuracies: dict[float, float], tries: int | None) -> list[float]:
    """Return what to try next: the best's untried neighbours, or what is nearest to it."""
    place = RATES.index(best(accuracies))
    if tries is None:
        return [times for times in RATES[max(place - 1, 0) : place + 2] if times not in accuracies]
    untried = [each for each, times in enumerate(RATES) if times not in accuracies]
    if len(accuracies) >= tries or not untried:
        return []
    return [RATES[min(untried, key=lambda each: (abs(each - place), -each))]]


def _tested_on_training_images(data: Data) -> Data:
    """Put the training images that were not drawn in the place of the test images."""
    drawn = {example.path for example in data.few_shot.train} if data.few_shot else set()
    rest = [example for example in data.splits.train if example.path not in drawn]
    return replace(data, splits=replace(data.splits, test=rest), tested_on="training")


def _of_first_classes(data: Data, count: int) -> Data:
    """Leave only the first classes, in training and in the test."""

    def some(examples: Sequence[Example]) -> list[Example]:
        return [example for example in examples if example.label < count]

    lists = data.splits
    splits: Splits = replace(
        lists,
        train=some(lists.train),
        val=some(lists.val),
        test=some(lists.test),
        class_names=lists.class_names[:count],
    )
    few_shot = data.few_shot
    if few_shot:
        few_shot = replace(few_shot, train=some(few_shot.train), val=some(few_shot.val))
    return replace(data, splits=splits, few_shot=few_shot)


def _figures(settings: Settings, metrics: Row) -> Iterator[tuple[str, Any]]:
    for key in ("method", "method_title", "shots", "seed"):
        yield key, metrics[key]
    optimizer = settings.method.optimizer.options if settings.method.optimizer else {}
    for key in ("lr", "density_ratio", "T"):
        yield key, optimizer.get(key)
    for key in (
        *("zero_shot_accuracy_percent", "accuracy_percent", "expected_calibration_error_percent"),
        *("trainable_parameters", "steps", "train_seconds", "peak_memory_mib", "final_loss"),
    ):
        yield key, metrics[key]
