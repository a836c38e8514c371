"""Compare SO with dense AdamW on digits while one factor at a time varies.

python scripts/advantage.py                # all factors: an hour and a half of one core
python scripts/advantage.py --only shots   # the base point and one factor

The base point is digits with the embedded CLIP, 4 shots, 100 steps and all ten classes. The factors
are shots, steps, classes, the number of pictures in CLIP's pre-training (its zero-shot quality) and
CLIP's width. SO runs at two densities (at the base point at more), AdamW on the same matrices. At
every point each contender tries the same number of learning rates and keeps the one with the best
accuracy on training images that the draw of seed 0 left over. At the base point the rates are far
apart; elsewhere they are around the base point's best. No validation or test image is used. Missing
weights are pre-trained into OUT/runs/advantage/weights. Existing weights and finished runs are
reused. The script writes OUT/tables/digits_advantage.csv after every point, and
OUT/figures/digits_advantage.png. Points that the table has for the same number of seeds stay;
remove the table to begin again.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from scripts.digits.runs import RATES, RESULTS, Overrides, Pool, Row, best, own_rate, pool, steps

DENSITIES: tuple[float, ...] = (5e-4, 1e-2)  # the paper's, and one for small matrices
# More densities at the base point. The last is SO on every entry, equal to Adam: a control.
MORE_DENSITIES: tuple[float, ...] = (1e-1, 1.0)
SEEDS = (1, 2, 3)
# Multiples of a method's own rate that the base point tries first, and the number of tries in all;
# each further try is next to the best so far. Other points start at the base point's best and its
# neighbours.
START: tuple[float, ...] = (1, 30, 1000)
TRIES, TRIES_ELSEWHERE = 6, 4
# The shipped weights took 800 steps of 128 pictures. Other weights use smaller, cheaper steps.
SHIPPED_WIDTH, SHIPPED_PICTURES = 128, 800 * 128
PICTURES_A_STEP = 32

# The multiples that each density tries first.
Starts = dict[float | None, Sequence[float]]


@dataclass(frozen=True)
class Point:
    """The setting of one comparison."""

    factor: str = "base"
    shots: int = 4
    steps: int = 100
    classes: int = 10
    width: int = SHIPPED_WIDTH  # width of CLIP's image tower; the text tower has 3/4 of it
    pretraining_pictures: int = SHIPPED_PICTURES


BASE = Point()
VARIED = {
    "shots": (1, 16),
    "pretraining_pictures": (12_800, 25_600),
    "width": (64, 256),
    "classes": (2, 5),
    "steps": (25, 400),
}
# Widths are compared after this many pictures; VARIED has the weights of the shipped width.
WIDTHS_AT = 12_800


def main(argv: Sequence[str] | None = None) -> None:
    """Choose rates, do the missing runs, write the table after each point, and draw it."""
    options = _parse(argv)
    runs = options.out / "runs" / "advantage"
    path = options.out / "tables" / "digits_advantage.csv"
    before = pd.read_csv(path) if path.exists() else None
    asked = list(points(list(VARIED)))
    rows: list[Row] = []
    starts: Starts = {}
    with pool(runs, options.workers) as workers:
        for point in asked:
            known = _rows_of(point, before)
            if known and known[0]["seeds"] != len(options.seeds):
                known = []
            if not known and point.factor in (BASE.factor, *options.only):
                print(point, flush=True)
                known = compare(workers, point, options.seeds, runs / "weights", starts)
            rows += known
            if point == BASE:
                starts = _around_the_best(rows)
            later = asked[asked.index(point) + 1 :]
            _write([*rows, *chain(*(_rows_of(other, before) for other in later))], path)
    from scripts.digits.plots import advantage

    advantage(pd.read_csv(path), options.out / "figures" / "digits_advantage.png")


def points(factors: Sequence[str]) -> Iterator[Point]:
    """Return the base point, and the points that differ from it in one factor."""
    yield BASE
    for factor in factors:
        for value in VARIED[factor]:
            point = replace(BASE, factor=factor, **{factor: value})
            yield replace(point, pretraining_pictures=WIDTHS_AT) if factor == "width" else point


def compare(
    workers: Pool, point: Point, seeds: Sequence[int], weights: Path, starts: Starts
) -> list[Row]:
    """Return one row for each contender at one point, AdamW first.

    Args:
        workers: the processes.
        point: the setting to compare in.
        seeds: one run for each seed and contender.
        weights: the folder of weights that are not shipped.
        starts: the multiples that each density tries first; empty at the base point.
    """
    contenders = _contenders(point, weights)
    start = {name: starts.get(density, START) for density, name in contenders.items()}
    tries = TRIES_ELSEWHERE if starts else TRIES
    tried = workers.tune(contenders.values(), ("seed=0",), point.classes, start, tries)
    rows, dense = [], pd.Series(dtype=float)
    for density, overrides in contenders.items():
        rates = tried[overrides]
        lr = own_rate(overrides) * best(rates)
        work = [(*overrides, f"optimizer.lr={lr:g}", f"seed={seed}") for seed in seeds]
        scores = pd.DataFrame(workers.rows("runs", work, point.classes))
        accuracy = scores["accuracy_percent"]
        if density is None:
            dense = accuracy
        rows.append(
            asdict(point)
            | {
                "zero_shot_accuracy_percent": scores["zero_shot_accuracy_percent"].mean(),
                "contender": "adamw" if density is None else "so",
                "density_ratio": density,
                "lr": lr,
                "rates_tried": len(rates),
                "lr_is_outermost": best(rates) in (min(rates), max(rates)),
                "seeds": len(accuracy),
                "accuracy_percent": accuracy.mean(),
                "accuracy_percent_std": accuracy.std(),
                **_paired(accuracy - dense, density is None),
            }
        )
    return rows


def _rows_of(point: Point, table: pd.DataFrame | None) -> list[Row]:
    """Return the rows of a point in a table."""
    if table is None:
        return []
    found = table[(table[list(asdict(point))] == pd.Series(asdict(point))).all(axis=1)]
    rows = found.to_dict("records")
    return [{key: None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def _around_the_best(base: Sequence[Row]) -> Starts:
    """Return, by density, the multiples around the best one of the base point."""
    starts: Starts = {}
    for row in base:
        own = own_rate((f"method={row['contender']}",))
        place = min(range(len(RATES)), key=lambda i: abs(RATES[i] * own - row["lr"]))
        starts[row["density_ratio"]] = RATES[max(place - 1, 0) : place + 2]
    return starts


def _contenders(point: Point, weights: Path) -> dict[float | None, Overrides]:
    """Return the overrides of AdamW (key None) and of SO by density."""
    common = (f"shots={point.shots}", *_weights(point, weights))
    so = ("method=so", *steps("so", point.steps), *common)
    densities = (*DENSITIES, *MORE_DENSITIES) if point == BASE else DENSITIES
    return {
        None: ("method=adamw", *steps("adamw", point.steps), *common),
        **{density: (*so, f"optimizer.density_ratio={density:g}") for density in densities},
    }


def _paired(differences: pd.Series, is_dense: bool) -> Row:
    """Return the mean difference to AdamW over seeds, its standard error, and the seeds > 0."""
    if is_dense:
        return dict.fromkeys(("minus_adamw_points", "minus_adamw_standard_error", "seeds_ahead"))
    return {
        "minus_adamw_points": differences.mean(),
        "minus_adamw_standard_error": differences.sem(),
        "seeds_ahead": int((differences > 0).sum()),
    }


def _weights(point: Point, folder: Path) -> Overrides:
    """Return the override for a point's weights; pre-train them if they are missing."""
    width, pictures = point.width, point.pretraining_pictures
    if (width, pictures) == (SHIPPED_WIDTH, SHIPPED_PICTURES):
        return ()
    from scripts import pretrain_tiny

    out = folder / f"width{width}_pictures{pictures}"
    if not (out / "tiny.json").exists():  # written last
        count, batch = f"--steps {pictures // PICTURES_A_STEP}", f"--batch {PICTURES_A_STEP}"
        sizes = f"--width {width} {count} {batch} --pictures {pictures}"
        arguments = pretrain_tiny.parse([*sizes.split(), "--out", str(out)])
        pretrain_tiny.pretrain(arguments, *_rendered(arguments.seed, pictures))
    return (f"backbone.checkpoint='{out}'",)


@cache
def _rendered(seed: int, count: int) -> tuple:
    """Render the pre-training pictures, once for all widths; return also the seconds."""
    from scripts.pretrain_tiny import render_pool

    start = time.perf_counter()
    return render_pool(seed, count, processes=1), time.perf_counter() - start


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _write(rows: Sequence[Row], path: Path) -> None:
    import torch

    torch.set_num_threads(1)  # as in every run; the table records it
    write_table(rows, path, torch.device("cpu"), "python scripts/advantage.py")


if __name__ == "__main__":
    main()
