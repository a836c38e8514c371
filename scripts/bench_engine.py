"""Measure the engine against the plain path, CLIP-LoRA and dense AdamW.

python scripts/bench_engine.py            # `make bench`: all tables and plots, in 40 minutes
python scripts/bench_engine.py --quick    # a tiny model, to check that it runs
python scripts/bench_engine.py --only launches  # operations of a step as on a GPU, counted
python scripts/bench_engine.py --device cuda    # steps on a GPU, eager and captured, in 8 minutes

Writes results/tables/engine_*.csv and results/figures/engine_*.png. Times are of whole training
steps on the machine named in the tables, and contenders take turns. Weights and images are random;
class names and prompts are real. FLOPs and memory are counted on fake tensors, also for batches and
datasets that the machine is too small for, and checked against real steps. Older tables of a GPU
come from `--device cuda --only optimizer steps peaks`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench import pixels, plots, sections
from scripts.bench.graphs import BUDGET_SECONDS, graph_rows
from scripts.bench.launches import launch_rows
from scripts.bench.plans import CUDA, FULL, QUICK
from scripts.bench.tables import write_table
from so_clip.runtime.device import cpu_threads, pick_device

RESULTS = Path(__file__).resolve().parent.parent / "results"
COUNTED = ("cost", "memory_check", "launches")  # on the CPU, for any timed device
ALLOCATED = ("peaks",)  # measured by a GPU's allocator
GRAPHS = "graphs"  # made for a GPU
ON_CUDA = (GRAPHS, "crops", "evaluation")  # in this order
SECTIONS = ("optimizer", "steps", *ALLOCATED, *COUNTED, "scaling", "evaluation", "crops", GRAPHS)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, and write tables and plots."""
    options = _parse(argv)
    with cpu_threads(options.threads):
        _bench(options)


def _bench(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    on_cuda = device.type == "cuda"
    plan = QUICK if options.quick else CUDA if on_cuda else FULL
    sections_here = [*ON_CUDA] if on_cuda else [name for name in SECTIONS if name not in ALLOCATED]
    if not (on_cuda or options.quick):
        sections_here.remove(GRAPHS)
    optimizers: list[sections.Row] = []
    for section in options.only or sections_here:
        started = time.monotonic()
        if section == "optimizer":
            rows = optimizers = sections.optimizer_rows(plan, device)
        elif section == "steps":
            optimizers = optimizers or sections.optimizer_rows(plan, device)
            rows = sections.step_rows(plan, device, optimizers)
        elif section == "peaks":
            rows = sections.peak_rows(plan, device)
        elif section == "cost":
            rows = sections.cost_rows(plan)
        elif section == "memory_check":
            rows = sections.memory_check_rows(plan)
        elif section == "evaluation":
            rows = pixels.evaluation_rows(device, options.quick)
        elif section == "crops":
            rows = pixels.crop_rows(device, options.quick)
        elif section == "launches":
            rows = launch_rows(plan)
        elif section == GRAPHS:
            rows = []
            for more in graph_rows(plan, device, options.seconds):
                rows += more
                _write(rows, section, device, options)
        else:
            rows = sections.scaling_rows(plan, device)
        table = _write(rows, section, device, options)
        print(table.iloc[:, :-4].to_string(index=False), flush=True)
        draw = getattr(plots, section, None)
        if draw is not None:
            draw(table, options.out / "figures" / f"{_name(section, device)}.png")
        print(f"{section}: {(time.monotonic() - started) / 60:.1f} minutes\n", flush=True)


def _write(
    rows: list[sections.Row], section: str, device: torch.device, options: argparse.Namespace
) -> pd.DataFrame:
    where = torch.device("cpu") if section in COUNTED else device
    path = options.out / "tables" / f"{_name(section, device)}.csv"
    return write_table(rows, path, where, _command(options, device, section))


def _name(section: str, device: torch.device) -> str:
    """Return a table's name. Counted operations are the same on all machines."""
    if section == "launches":
        return "engine_launches"
    return f"engine_{section}_{'cpu' if section in COUNTED else device.type}"


def _command(options: argparse.Namespace, device: torch.device, section: str) -> str:
    if section == "launches" and not options.quick:
        return "python scripts/bench_engine.py --only launches"
    if device.type == "cpu" and not options.quick:
        return "make bench"
    arguments = "--quick" if options.quick else f"--device {device.type}"
    return f"python scripts/bench_engine.py {arguments}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="TABLE", help=", ".join(SECTIONS)
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of timed steps: cpu | cuda | cuda:N")
    parser.add_argument(
        "--seconds",
        type=float,
        default=BUDGET_SECONDS,
        help=f"for the table {GRAPHS}; what does not fit is skipped",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
