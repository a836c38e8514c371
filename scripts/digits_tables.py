"""Run every method, the ablations and kappa x T on digits with the embedded CLIP, and table them.

python scripts/digits_tables.py            # all of it: an hour and a half on two cores
python scripts/digits_tables.py --only kappa_t --shots 4 --seeds 1

Rates first: each method's is chosen among multiples of its paper's by accuracy on training images
that the draw of seed 0 left over; no validation or test image takes part. Then the runs. Those that
are finished are not repeated. Writes results/tables/digits_*.csv.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from so_clip.config import compose
from so_clip.data.gather import Data, gather
from so_clip.paths import CONF_DIR
from so_clip.record import METRICS_FILE, read_metrics
from so_clip.settings import Settings, from_config

RESULTS = Path(__file__).resolve().parent.parent / "results"
SECTIONS = ("methods", "kappa_t")
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
RATES = (1, 3, 10, 30)  # times a method's own
DENSITIES, INTERVALS = (5e-4, 2e-3, 1e-2, 5e-2, 2e-1, 1.0), (0, 1, 5, 10, 50)
STEPS = 200
# As in the demo: digits lose their meaning when mirrored or cut in half.
COMMON = (
    *("dataset=digits", "backbone=tiny", "threads=1", "augment.scale=[0.6,1.0]"),
    "augment.flip=false",
)
TUNING = ("shots=4", "seed=0")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Choose rates, do the runs that are missing, write the tables."""
    options = _parse(argv)
    methods = options.methods or sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))
    runs = options.out / "runs" / "digits"
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        rates = _rates(pool, methods, runs / "rates")
        if "methods" in options.only:
            work = [
                (*_of(method, rates), f"shots={shots}", f"seed={seed}")
                for method, shots, seed in product(methods, options.shots, options.seeds)
            ]
            _write(_rows(pool, work, runs / "methods", "methods"), options.out, "digits_methods")
        if "kappa_t" in options.only:
            work = [
                (*_of("so", rates), *_so(density, interval), "shots=4", f"seed={seed}")
                for density, interval, seed in product(DENSITIES, INTERVALS, options.seeds)
            ]
            _write(_rows(pool, work, runs / "kappa_t", "kappa x T"), options.out, "digits_kappa_t")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all")
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _of(method: str, rates: pd.DataFrame) -> tuple[str, ...]:
    """Return the overrides of a method on digits, its rate the chosen one."""
    own = rates[rates["method"] == method]
    rate = (f"optimizer.lr={own['lr'].iloc[0]}",) if len(own) else ()
    return (f"method={method}", *_steps(method), *rate)


def _steps(method: str) -> tuple[str, ...]:
    settings = _settings([f"method={method}"])
    return (f"schedule.max_steps={STEPS}", "schedule.stop_loss=0") if settings.trains else ()


def _so(density: float, interval: int) -> tuple[str, ...]:
    return (f"optimizer.density_ratio={density}", f"optimizer.T={interval}")


def _settings(overrides: Iterable[str], results_dir: Path = RESULTS) -> Settings:
    return from_config(compose([*COMMON, *overrides, f"results_dir={results_dir}"]))


def _rates(pool: ProcessPoolExecutor, methods: Iterable[str], runs: Path) -> pd.DataFrame:
    """Return for each method that trains the rate with the best left-over training accuracy."""
    work: list[tuple[str, ...]] = []
    for method in methods:
        optimizer = _settings([f"method={method}"]).optimizer
        if optimizer is not None:
            rates = (optimizer["lr"] * times for times in RATES)
            base = (f"method={method}", *_steps(method), *TUNING)
            work += [(*base, f"optimizer.lr={rate}") for rate in rates]
    rows = pd.DataFrame(_rows(pool, work, runs, "rates", left_over=True))
    if rows.empty:
        return pd.DataFrame(columns=["method", "lr"])
    best = rows.sort_values(["accuracy_percent", "lr"], ascending=[False, True])
    return best.drop_duplicates("method")


def _rows(
    pool: ProcessPoolExecutor,
    work: Sequence[tuple[str, ...]],
    runs: Path,
    title: str,
    left_over: bool = False,
) -> list[Row]:
    jobs = [pool.submit(_do, overrides, runs, left_over) for overrides in work]
    return [job.result() for job in tqdm(jobs, title, unit="run", dynamic_ncols=True)]


def _do(overrides: tuple[str, ...], runs: Path, left_over: bool) -> Row:
    """Do one run, unless it is done, and return what the tables want of it."""
    from so_clip.assemble import resolved

    settings = resolved(_settings(overrides, runs))
    finished = settings.run_dir / METRICS_FILE
    if not finished.exists():
        from so_clip.device import cpu_threads
        from so_clip.run import run

        data = gather(**settings.data)
        with cpu_threads(settings.threads):
            run(settings, _tested_on_training_images(data) if left_over else data)
    return dict(_figures(settings, read_metrics(finished)))


def _tested_on_training_images(data: Data) -> Data:
    """Put the training images that were not drawn in the place of the test images."""
    drawn = {example.path for example in data.few_shot.train} if data.few_shot else set()
    rest = [example for example in data.splits.train if example.path not in drawn]
    return replace(data, splits=replace(data.splits, test=rest))


def _figures(settings: Settings, metrics: Row) -> Iterator[tuple[str, Any]]:
    for key in ("method", "method_title", "shots", "seed"):
        yield key, metrics[key]
    optimizer = settings.optimizer or {}
    for key in ("lr", "density_ratio", "T"):
        yield key, optimizer.get(key)
    for key in (
        *("zero_shot_accuracy_percent", "accuracy_percent", "trainable_parameters", "steps"),
        *("train_seconds", "peak_memory_mib", "final_loss"),
    ):
        yield key, metrics[key]


def _write(rows: Sequence[Row], out: Path, name: str) -> None:
    import torch

    rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]  # zero-shot's
    command = "python scripts/digits_tables.py"
    write_table(rows, out / "tables" / f"{name}.csv", torch.device("cpu"), command)


if __name__ == "__main__":
    main()
