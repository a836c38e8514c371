"""Look for where SO's advantage over dense AdamW begins: one factor at a time, on digits.

python scripts/advantage.py                # all of it: an hour and a half of one core
python scripts/advantage.py --only shots   # the base point and one factor

The base point is digits with the embedded CLIP, 4 shots, 100 steps and all ten classes. Shots,
steps, classes, the steps of CLIP's pre-training (how good it is zero-shot) and its width are varied
one by one, SO at several densities against AdamW on the same matrices. At every point the rate of
each contender is chosen among as many, by accuracy on training images that the draw of seed 0 left
over; no validation or test image takes part. Weights that are missing are pre-trained first, below
OUT/runs/advantage/weights; they, and runs that are finished, are not made again. Writes
OUT/tables/digits_advantage.csv after every point, and OUT/figures/digits_advantage.png.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from scripts.digits.runs import RESULTS, Overrides, Pool, Row, best, pool, steps

DENSITIES: tuple[float, ...] = (5e-4, 1e-2, 1e-1)
# At the base point also SO on every entry, which is Adam: shows that nothing else differs.
CONTROL = 1.0
SEEDS = (1, 2, 3)
# Of the method's own rate, far apart first; then always next to the best so far.
START: tuple[float, ...] = (1, 10, 100)
TRIES = 5
SHIPPED_WIDTH, SHIPPED_STEPS = 128, 800
PICTURES = 60_000  # as for the weights that ship


@dataclass(frozen=True)
class Point:
    """What all contenders are compared at."""

    factor: str = "base"
    shots: int = 4
    steps: int = 100
    classes: int = 10
    width: int = SHIPPED_WIDTH  # of CLIP's image tower; the text tower's is 3/4 of it
    pretraining_steps: int = SHIPPED_STEPS


BASE = Point()
VARIED = {
    "shots": (1, 16),
    "classes": (2, 5),
    "pretraining_steps": (200,),
    "width": (64, 256),
    "steps": (25, 400),
}
# Widths are compared after so many steps of pre-training; the present one's is among those above.
WIDTHS_AT = 200


def main(argv: Sequence[str] | None = None) -> None:
    """Choose rates, do the runs that are missing, write the table after each point, and draw it."""
    options = _parse(argv)
    runs = options.out / "runs" / "advantage"
    path = options.out / "tables" / "digits_advantage.csv"
    rows: list[Row] = []
    with pool(runs, options.workers) as workers:
        for point in points(options.only):
            print(point, flush=True)
            rows += compare(workers, point, options.seeds, runs / "weights")
            _write(rows, path)
    from scripts.digits.plots import advantage

    advantage(pd.read_csv(path), options.out / "figures" / "digits_advantage.png")


def points(factors: Sequence[str]) -> Iterator[Point]:
    """Return the base point, and those that differ from it in one factor."""
    yield BASE
    for factor in factors:
        for value in VARIED[factor]:
            point = replace(BASE, factor=factor, **{factor: value})
            yield replace(point, pretraining_steps=WIDTHS_AT) if factor == "width" else point


def compare(workers: Pool, point: Point, seeds: Sequence[int], weights: Path) -> list[Row]:
    """Return a row a contender at one point, AdamW's first."""
    common = (f"shots={point.shots}", *_weights(point, weights))
    so = ("method=so", *steps("so", point.steps), *common)
    densities = (*DENSITIES, CONTROL) if point == BASE else DENSITIES
    contenders: list[tuple[float | None, Overrides]] = [
        (None, ("method=adamw", *steps("adamw", point.steps), *common))
    ]
    contenders += [(each, (*so, f"optimizer.density_ratio={each:g}")) for each in densities]
    tuned = [overrides for _, overrides in contenders]
    tried = workers.tune(tuned, ("seed=0",), point.classes, START, TRIES)
    rows, dense = [], pd.Series(dtype=float)
    for density, overrides in contenders:
        rates = tried[overrides]
        lr = best(rates)
        work = [(*overrides, f"optimizer.lr={lr:g}", f"seed={seed}") for seed in seeds]
        figures = pd.DataFrame(workers.rows("runs", work, point.classes))
        accuracy = figures["accuracy_percent"]
        if density is None:
            dense = accuracy
        rows.append(
            asdict(point)
            | {
                "zero_shot_accuracy_percent": figures["zero_shot_accuracy_percent"].mean(),
                "contender": "adamw" if density is None else "so",
                "density_ratio": density,
                "lr": lr,
                "rates_tried": len(rates),
                "lr_is_outermost": lr in (min(rates), max(rates)),
                "seeds": len(accuracy),
                "accuracy_percent": accuracy.mean(),
                "accuracy_percent_std": accuracy.std(),
                **_paired(accuracy - dense, density is None),
                "train_seconds": figures["train_seconds"].mean(),
            }
        )
    return rows


def _paired(differences: pd.Series, is_dense: bool) -> Row:
    """Return the mean difference to AdamW over seeds, its standard error, and seeds above 0."""
    if is_dense:
        return dict.fromkeys(("minus_adamw_points", "minus_adamw_standard_error", "seeds_ahead"))
    return {
        "minus_adamw_points": differences.mean(),
        "minus_adamw_standard_error": differences.sem(),
        "seeds_ahead": int((differences > 0).sum()),
    }


def _weights(point: Point, folder: Path) -> Overrides:
    """Name the folder of a point's weights; pre-train them if nobody has."""
    if (point.width, point.pretraining_steps) == (SHIPPED_WIDTH, SHIPPED_STEPS):
        return ()
    from scripts import pretrain_tiny

    out = folder / f"width{point.width}_steps{point.pretraining_steps}"
    if not (out / "tiny.json").exists():  # written last
        sizes = f"--width {point.width} --steps {point.pretraining_steps} --pictures {PICTURES}"
        arguments = pretrain_tiny.parse([*sizes.split(), "--out", str(out)])
        pretrain_tiny.pretrain(arguments, *_pictures(arguments.seed, PICTURES))
    return (f"backbone.checkpoint='{out}'",)


@cache
def _pictures(seed: int, count: int) -> tuple:
    """Render the pictures of the pre-training, once for all weights; return the seconds too."""
    from scripts.pretrain_tiny import render_pool

    start = time.perf_counter()
    return render_pool(seed, count, processes=1), time.perf_counter() - start


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _write(rows: Sequence[Row], path: Path) -> None:
    import torch

    torch.set_num_threads(1)  # as every run has it, for the table to say
    write_table(rows, path, torch.device("cpu"), "python scripts/advantage.py")


if __name__ == "__main__":
    main()
