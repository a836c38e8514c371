"""Measure the engine against the plain path, CLIP-LoRA and dense AdamW.

python scripts/bench_engine.py            # `make bench`: all tables and plots, in 40 minutes
python scripts/bench_engine.py --quick    # a tiny model, to check that it runs
python scripts/bench_engine.py --device cuda    # in bf16 and with the paper's batch, on a GPU

Writes results/tables/engine_*.csv and results/figures/engine_*.png. Times are of whole training
steps on the machine named in the tables, and contenders take turns. Weights and images are random;
class names and prompts are real. FLOPs and memory are counted on fake tensors, also for batches and
datasets that the machine is too small for, and checked against real steps.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench import pixels, plots, sections
from scripts.bench.plans import CUDA, FULL, QUICK
from scripts.bench.tables import write_table
from so_clip.runtime.device import cpu_threads, pick_device

RESULTS = Path(__file__).resolve().parent.parent / "results"
COUNTED = ("cost", "memory_check")  # on the CPU, for any timed device
ALLOCATED = ("peaks",)  # measured by a GPU's allocator
SECTIONS = ("optimizer", "steps", *ALLOCATED, *COUNTED, "scaling", "evaluation", "crops")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, and write tables and plots."""
    options = _parse(argv)
    with cpu_threads(options.threads):
        _bench(options)


def _bench(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    plan, elsewhere = (CUDA, COUNTED) if device.type == "cuda" else (FULL, ALLOCATED)
    plan = QUICK if options.quick else plan
    optimizers: list[sections.Row] = []
    for section in options.only or [name for name in SECTIONS if name not in elsewhere]:
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
        else:
            rows = sections.scaling_rows(plan, device)
        where = torch.device("cpu") if section in COUNTED else device
        name = f"engine_{section}_{where.type}"
        command = _command(options, device)
        table = write_table(rows, options.out / "tables" / f"{name}.csv", where, command)
        print(table.iloc[:, :-4].to_string(index=False), flush=True)
        draw = getattr(plots, section, None)
        if draw is not None:
            draw(table, options.out / "figures" / f"{name}.png")
        print(f"{section}: {(time.monotonic() - started) / 60:.1f} minutes\n", flush=True)


def _command(options: argparse.Namespace, device: torch.device) -> str:
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
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
