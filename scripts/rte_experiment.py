"""Compare SO, LoRA and dense methods on RTE with 32 pairs, and write tables and a plot.

    python scripts/rte_experiment.py --data DATA_ROOT
    python scripts/rte_experiment.py --data DATA_ROOT --minutes 50   # start no run after that
    python scripts/rte_experiment.py --tables-only                   # from the finished runs

The model is all-MiniLM-L6-v2, a real pre-trained BERT of 22.7 M weights (extra `text`). In order:

1. For each method, three rates, on training pairs that no draw uses (split=leftover). The best one
   goes into all tables. SO's is chosen at density 1e-4, LoRA's at rank 8.
2. experiment=rte_fair: SO at three densities, LoRA at four ranks, dense AdamW, BitFit and a frozen
   encoder with a trained head; five seeds. After the first seed, SO's grid of density and T. Seeds
   come one after the other, so an experiment that is stopped has fewer seeds, not fewer methods.
3. experiment=rte_official, once for each published density at T = 5 and each rank, the released
   defaults first. It has no limit of 40 steps, so it takes longest: `--only official` does it
   later.

Why 40 steps: all of it must take less than two hours of two cores. A step of 8 pairs takes 0.5 s
(trained head) to 1.3 s (all weights) in two processes on two cores that other work shares, and the
test of 277 pairs 8 s. 40 steps are ten epochs; at the chosen rates the training loss falls from
0.69 to 0.3 (SO) or below 0.01 (LoRA, AdamW). A run stops earlier at a batch's loss of 1e-3. Parts 1
and 2 took 29 minutes, with one seed of the grid. The rates are about a factor of 3 apart.

Finished runs are skipped, so the same command continues an interrupted experiment. The script
writes OUT/tables/rte_rates.csv, rte_methods.csv, rte_tests.csv (paired, over seeds and over pairs),
rte_kappa_t.csv and rte_official.csv, and OUT/figures/rte_methods.png. A table has what is finished.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from scripts.rte import plan, tables
from scripts.rte.runs import Pool, finished, pool
from scripts.rte.tables import Row

RESULTS = Path(__file__).resolve().parents[1] / "results"
DATA_ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"
STEPS = 40
PARTS = ("methods", "grid", "official")


def main(argv: Sequence[str] | None = None) -> None:
    """Do the missing runs, and write the tables and the plot."""
    options = _parse(argv)
    runs = options.runs or options.out / "runs" / "rte"
    if not options.tables_only:
        common = ("device=cpu", "threads=1", "save=false", f"data_root={options.data}")
        until = time.time() + 60 * options.minutes
        with pool(runs.resolve(), common, options.workers, until) as workers:
            _run_all(workers, options)
    _write(runs, options)


def _run_all(workers: Pool, options: argparse.Namespace) -> None:
    """Choose the rates, then do all other runs, the most useful first."""
    model = _model_words(options.model)
    common = (*model, f"schedule.max_steps={options.steps}")
    work: list[plan.Work] = []
    if {*options.only} & {"methods", "grid"}:
        workers.do("rates", plan.rates_work(common))
        tried = finished(workers.runs, "rates")
        rates = tables.chosen_rates(tried) if len(tried) else {}
        missing = {each.method for each in plan.tuned()} - {*rates}
        if missing:
            print(f"no rate is finished for {', '.join(sorted(missing))}: nothing else is started")
            return
        seeds = options.seeds if "methods" in options.only else ()
        grid_seeds = [seed for seed in plan.GRID_SEEDS if seed in options.seeds]
        grid_seeds = grid_seeds if "grid" in options.only else []
        work += plan.table_work(common, rates, seeds, grid_seeds)
    if "official" in options.only:
        work += plan.official_work(model)
    workers.do("runs", work)


def _model_words(model: str) -> plan.Words:
    """Return the options of a model: a choice of conf/model, or a folder."""
    if Path(model).is_dir():
        return ("model=folder", f"model.source={Path(model).resolve()}")
    return (f"model={model}",)


def _write(runs: Path, options: argparse.Namespace) -> None:
    """Write the tables of the chosen parts that have finished runs."""
    asked = {*options.only}
    tried = finished(runs, "rates") if asked - {"official"} else pd.DataFrame()
    official = finished(runs, "official") if "official" in asked else pd.DataFrame()
    if tried.empty and official.empty:
        print(f"{runs}: no run is finished, so there is no table")
    if len(tried):
        _write_fair(runs, tried, options)
    if len(official):
        _save(tables.official_rows(official), "official", options)


def _write_fair(runs: Path, tried: pd.DataFrame, options: argparse.Namespace) -> None:
    _save(tables.rate_rows(tried), "rates", options)
    own = tables.at_rates(finished(runs, "runs"), tables.chosen_rates(tried), options.seeds)
    if own.empty:
        return
    table = _save(tables.method_rows(own), "methods", options)
    _save(tables.test_rows(own, runs / "runs"), "tests", options)
    _save(tables.grid_rows(own), "kappa_t", options)
    from scripts.rte import plots

    plots.accuracies(table, own, options.out / "figures" / "rte_methods.png")


def _save(rows: Sequence[Row], name: str, options: argparse.Namespace) -> pd.DataFrame:
    import torch

    torch.set_num_threads(1)  # as in every run; the table records it
    command = "python scripts/rte_experiment.py"
    given = {"model": (options.model, "minilm"), "steps": (options.steps, STEPS)}
    if (*options.only,) != PARTS:
        command += f" --only {' '.join(options.only)}"
    for key, (value, default) in given.items():
        command += f" --{key} {value}" if value != default else ""
    path = options.out / "tables" / f"rte_{name}.csv"
    print(f"{path}: {len(rows)} rows")
    return write_table(rows, path, torch.device("cpu"), command)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables-only", action="store_true", help="start no run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts")
    parser.add_argument("--model", default="minilm", help="a choice of conf/model, or a folder")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the runs on fair terms")
    parser.add_argument("--seeds", nargs="+", type=int, default=plan.SEEDS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run later")
    parser.add_argument("--workers", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--data", type=Path, default=DATA_ROOT, metavar="DATA_ROOT")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: OUT/runs/rte)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
