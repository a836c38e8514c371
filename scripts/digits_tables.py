"""Run every method, the ablations and kappa x T with the embedded CLIP, and write tables.

python scripts/digits_tables.py            # all tables on digits: more than an hour on two cores
python scripts/digits_tables.py --only kappa_t --seeds 1
python scripts/digits_tables.py --dataset textile --only methods  # fabric; the extra `textile`

First, the learning rate of each method and density is chosen among multiples of its default, by
accuracy on training images that the draw of seed 0 left over; no validation or test image is used.
The runs follow. Finished runs are not repeated. The script writes results/tables/DATASET_*.csv.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from scripts.digits.runs import RESULTS, Row, pool, settings_of, steps
from so_clip.system.paths import CONF_DIR

SECTIONS = ("methods", "kappa_t")
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
DENSITIES, INTERVALS = (5e-4, 2e-3, 1e-2, 5e-2, 2e-1, 1.0), (0, 1, 5, 10, 50)
STEPS = 100
TUNING = ("shots=4", "seed=0")


def without_checkpoint() -> list[str]:
    """Return the methods that need no file of a meta-training."""
    names = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))
    adapters = {name: settings_of((f"method={name}",)).method.adapter for name in names}
    return [
        name
        for name, made in adapters.items()
        if "checkpoint" not in (made.options if made else ())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Choose rates, do the missing runs, and write the tables."""
    options = _parse(argv)
    methods = options.methods or without_checkpoint()
    dataset = (f"dataset={options.dataset}",)
    with pool(options.out / "runs" / options.dataset, options.workers) as workers:
        if "methods" in options.only:
            contenders = [
                (f"method={method}", *dataset, *steps(method, STEPS)) for method in methods
            ]
            contenders = workers.with_rates(contenders, TUNING)
            asked = product(contenders, options.shots, options.seeds)
            work = [(*run, f"shots={shots}", f"seed={seed}") for run, shots, seed in asked]
            _write(workers.rows("methods", work), options, "methods")
        if "kappa_t" in options.only:
            so = ("method=so", *dataset, *steps("so", STEPS))
            contenders = [(*so, f"optimizer.density_ratio={density}") for density in DENSITIES]
            contenders = workers.with_rates(contenders, TUNING)
            asked = product(contenders, INTERVALS, options.seeds)
            work = [(*run, f"optimizer.T={T}", "shots=4", f"seed={seed}") for run, T, seed in asked]
            _write(workers.rows("kappa_t", work), options, "kappa_t")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", choices=("digits", "textile"), default="digits")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all")
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _write(rows: Sequence[Row], options: argparse.Namespace, section: str) -> None:
    import torch

    rows = [
        dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)
    ]  # zero-shot runs repeat
    given = {key: getattr(options, key) for key in ("methods", "shots", "seeds")}
    default = {"methods": None, "shots": SHOTS, "seeds": SEEDS}
    command = f"python scripts/digits_tables.py --dataset {options.dataset} --only {section}"
    for key, values in given.items():
        if values != default[key]:
            command += f" --{key} {' '.join(map(str, values))}"
    path = options.out / "tables" / f"{options.dataset}_{section}.csv"
    torch.set_num_threads(1)  # as in every run; the table records it
    write_table(rows, path, torch.device("cpu"), command)


if __name__ == "__main__":
    main()
