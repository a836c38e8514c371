"""Size and speed of adapter files on ViT-B/16: save, load, apply, remove and exchange.

python scripts/bench_adapters.py           # a part of `make bench`: three minutes
python scripts/bench_adapters.py --quick   # the tiny backbone, to check that it runs

Writes results/tables/adapters_cpu.csv. Weights are random. SO makes the steps of a run of 4 shots
(500, 1,000 and at most 2,000), with the paper's density ratio and T and the run's cosine. Its
gradients are drawn, half of them fixed for each entry and half new in each step: the moves of a run
without its forward passes. `moved_share_of_draws` compares the moved entries with the entries of
all supports. Seconds are the best of several turns.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from so_clip import adapters
from so_clip.adapters.about import About, Base
from so_clip.adapters.change import change_between
from so_clip.adapters.file import saved_adapter
from so_clip.clip.backbone import sha256_of_weights
from so_clip.clip.load import load_backbone
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.so import SO
from so_clip.runtime.device import cpu_threads

TABLES = Path(__file__).resolve().parent.parent / "results" / "tables"
MIB = 2**20
TURNS = 3
LR, LR_MIN, DENSITY_RATIO, T = 2e-4, 1e-6, 5e-4, 10
MATRICES = (
    "attn.in_proj_weight",
    "attn.out_proj.weight",
    "mlp.c_fc.weight",
    "mlp.c_proj.weight",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny backbone, few steps")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, default=TABLES)
    options = parser.parse_args(argv)
    steps = (20, 40) if options.quick else (500, 1000, 2000)
    with cpu_threads(options.threads), tempfile.TemporaryDirectory() as folder:
        rows = measure("tiny" if options.quick else "ViT-B-16-quickgelu", steps, Path(folder))
    command = f"python scripts/bench_adapters.py{' --quick' if options.quick else ''}"
    table = write_table(rows, options.out / "adapters_cpu.csv", torch.device("cpu"), command)
    print(table.iloc[:, :-4].to_string(index=False))


def measure(architecture: str, steps: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Return one row for each number of steps."""
    model = load_backbone(architecture, explicit=False).model
    base = {name: value.clone() for name, value in model.state_dict().items()}
    weights_sha256 = sha256_of_weights(base)
    about = About(
        base=Base(architecture=architecture, weights_sha256=weights_sha256, logit_scale=100)
    )
    rows = []
    for adapted, count in trained(model, steps):
        started = time.perf_counter()
        changes = {
            name: change
            for name, value in adapted.items()
            if (change := change_between(base[name], value)) is not None
        }
        file = folder / f"{count}.safetensors"
        adapters.save(saved_adapter(about, changes), file)
        save_seconds = time.perf_counter() - started
        moved = sum(len(change.delta) for change in changes.values())
        drawn = count // T * sum(entries(base[name]) for name in adapted)
        rows.append(
            {
                "architecture": architecture,
                "steps": count,
                "matrix_entries": sum(value.numel() for value in adapted.values()),
                "moved_entries": moved,
                "moved_share_of_draws": moved / drawn,
                "exact_entries": sum(len(change.exact_X) for change in changes.values()),
                "file_mib": file.stat().st_size / MIB,
                "checkpoint_mib": sum(value.nbytes for value in base.values()) / MIB,
                "save_seconds": save_seconds,
                **seconds_of(base, adapted, file),
            }
        )
    return rows


def entries(matrix: Tensor) -> int:
    """Return M, the size of a support."""
    return max(1, int(matrix.numel() * DENSITY_RATIO))


def trained(model: nn.Module, steps: Sequence[int]) -> Any:
    """Yield SO's matrices after runs of these numbers of steps; the model does not change."""
    named = {
        name: nn.Parameter(value.detach().clone())
        for name, value in model.named_parameters()
        if name.endswith(MATRICES)
    }
    draws = torch.Generator().manual_seed(0)
    fixed = {name: torch.randn(value.numel(), generator=draws) for name, value in named.items()}
    for last in steps:
        parameters = {name: nn.Parameter(value.detach().clone()) for name, value in named.items()}
        optimizer = SO([*parameters.values()], lr=LR, density_ratio=DENSITY_RATIO, T=T)
        for step in tqdm(range(last), f"{last} steps", dynamic_ncols=True):
            for name, parameter in parameters.items():
                support_M = optimizer.support(parameter)
                assert support_M is not None
                noise_M = torch.randn(len(support_M), generator=draws)
                values_M = fixed[name][support_M] + noise_M
                parameter.grad = SampledGradient(parameter, support_M, values_M)
            cosine = (1 + math.cos(math.pi * step / last)) / 2
            optimizer.param_groups[0]["lr"] = LR_MIN + (LR - LR_MIN) * cosine
            optimizer.step()
        yield {name: parameter.detach() for name, parameter in parameters.items()}, last


def seconds_of(base: dict[str, Tensor], adapted: dict[str, Tensor], file: Path) -> dict[str, float]:
    """Return the seconds of each use of a file; check that they are exact."""
    load_seconds, adapter = best(lambda: adapters.load(file))
    fresh = load_backbone(str(adapter.about.base.architecture), explicit=False).model
    started = time.perf_counter()
    adapters.apply(fresh, adapter)
    first_apply_seconds = time.perf_counter() - started
    state = fresh.state_dict()
    assert all(torch.equal(state[name], value) for name, value in adapted.items())
    remove_seconds, _ = best(lambda: adapters.remove(fresh), lambda: adapters.apply(fresh, adapter))
    assert all(torch.equal(state[name], value) for name, value in base.items())
    other = adapters.scale(adapter, 0.5)
    adapters.apply(fresh, other)
    exchange_seconds, _ = best(
        lambda: adapters.apply(fresh, adapter), lambda: adapters.apply(fresh, other)
    )
    return {
        "load_seconds": load_seconds,
        "first_apply_seconds": first_apply_seconds,
        "exchange_seconds": exchange_seconds,
        "remove_seconds": remove_seconds,
    }


def best(call: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> tuple[float, Any]:
    """Return the least seconds of a call in several turns, and its result."""
    taken, result = [], None
    for _ in range(TURNS):
        prepare()
        started = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - started)
    return min(taken), result


if __name__ == "__main__":
    main()
