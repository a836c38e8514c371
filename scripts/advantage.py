"""Look for where SO's advantage over dense AdamW begins: one factor at a time, on digits.

python scripts/advantage.py                # all of it: an hour and a half of one core
python scripts/advantage.py --only shots   # the base point and one factor

The base point is digits with the embedded CLIP, 4 shots, 100 steps and all ten classes. Shots,
steps, classes, the pictures that CLIP was pre-trained on (how good it is zero-shot) and its width
are varied one by one, SO at two densities (at the base point at more) against AdamW on the same
matrices. At every point the rate of each contender is chosen among as many, by accuracy on training
images that the draw of seed 0 left over: among multiples far apart at the base point, around the
best of those elsewhere. No validation or test image takes part. Weights that are missing are
pre-trained, below OUT/runs/advantage/weights; they, and runs that are finished, are not made again.
Writes OUT/tables/digits_advantage.csv after every point, and OUT/figures/digits_advantage.png.
Points that are in that table already, of as many seeds, stay as they are: remove it to begin anew.
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

DENSITIES: tuple[float, ...] = (5e-4, 1e-2)  # the paper's, and one that suits small matrices
# At the base point also others. The last is SO on every entry, which is Adam: nothing else differs.
MORE_DENSITIES: tuple[float, ...] = (1e-1, 1.0)
SEEDS = (1, 2, 3)
# Multiples of a method's own rate that are tried first at the base point, and how many are in all,
# always next to the best so far. Elsewhere the first are the base point's best and its neighbours.
START: tuple[float, ...] = (1, 30, 1000)
TRIES, TRIES_ELSEWHERE = 6, 4
# The weights that ship took 800 steps of 128 pictures. Others take smaller steps, for their price.
SHIPPED_WIDTH, SHIPPED_PICTURES = 128, 800 * 128
PICTURES_A_STEP = 32

# The multiples that a density's rates are first looked for among.
Starts = dict[float | None, Sequence[float]]


@dataclass(frozen=True)
class Point:
    """What all contenders are compared at."""

    factor: str = "base"
    shots: int = 4
    steps: int = 100
    classes: int = 10
    width: int = SHIPPED_WIDTH  # of CLIP's image tower; the text tower's is 3/4 of it
    pretraining_pictures: int = SHIPPED_PICTURES


BASE = Point()
VARIED = {
    "shots": (1, 16),
    "pretraining_pictures": (12_800, 25_600),
    "width": (64, 256),
    "classes": (2, 5),
    "steps": (25, 400),
}
# Widths are compared after so many pictures; the present one's weights are among those above.
WIDTHS_AT = 12_800


def main(argv: Sequence[str] | None = None) -> None:
    """Choose rates, do the runs that are missing, write the table after each point, and draw it."""
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
            _write([*rows, *chain(*(_rows_of(each, before) for each in later))], path)
    from scripts.digits.plots import advantage

    advantage(pd.read_csv(path), options.out / "figures" / "digits_advantage.png")


def points(factors: Sequence[str]) -> Iterator[Point]:
    """Return the base point, and those that differ from it in one factor."""
    yield BASE
    for factor in factors:
        for value in VARIED[factor]:
            point = replace(BASE, factor=factor, **{factor: value})
            yield replace(point, pretraining_pictures=WIDTHS_AT) if factor == "width" else point


def compare(
    workers: Pool, point: Point, seeds: Sequence[int], weights: Path, starts: Starts
) -> list[Row]:
    """Return a row a contender at one point, AdamW's first.

    Args:
        workers, point, seeds: who does it, what is compared, and how often.
        weights: the folder of weights that do not ship.
        starts: the multiples that a density's rates are first looked for among; empty at the base.
    """
    contenders = _contenders(point, weights)
    start = {each: starts.get(density, START) for density, each in contenders.items()}
    tries = TRIES_ELSEWHERE if starts else TRIES
    tried = workers.tune(contenders.values(), ("seed=0",), point.classes, start, tries)
    rows, dense = [], pd.Series(dtype=float)
    for density, overrides in contenders.items():
        rates = tried[overrides]
        lr = own_rate(overrides) * best(rates)
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
                "lr_is_outermost": best(rates) in (min(rates), max(rates)),
                "seeds": len(accuracy),
                "accuracy_percent": accuracy.mean(),
                "accuracy_percent_std": accuracy.std(),
                **_paired(accuracy - dense, density is None),
            }
        )
    return rows


def _rows_of(point: Point, table: pd.DataFrame | None) -> list[Row]:
    """Return the rows that a table has of a point."""
    if table is None:
        return []
    found = table[(table[list(asdict(point))] == pd.Series(asdict(point))).all(axis=1)]
    rows = found.to_dict("records")
    return [{key: None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def _around_the_best(base: Sequence[Row]) -> Starts:
    """Return, by density, the multiples around the one that was best at the base point."""
    starts: Starts = {}
    for row in base:
        own = own_rate((f"method={row['contender']}",))
        place = min(range(len(RATES)), key=lambda i: abs(RATES[i] * own - row["lr"]))
        starts[row["density_ratio"]] = RATES[max(place - 1, 0) : place + 2]
    return starts


def _contenders(point: Point, weights: Path) -> dict[float | None, Overrides]:
    """Return AdamW and SO as they are at a point, by density; None is AdamW's."""
    common = (f"shots={point.shots}", *_weights(point, weights))
    so = ("method=so", *steps("so", point.steps), *common)
    densities = (*DENSITIES, *MORE_DENSITIES) if point == BASE else DENSITIES
    return {
        None: ("method=adamw", *steps("adamw", point.steps), *common),
        **{each: (*so, f"optimizer.density_ratio={each:g}") for each in densities},
    }


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
    """Render the pictures of the pre-training, once for all widths; return the seconds too."""
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
