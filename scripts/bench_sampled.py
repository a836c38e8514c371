"""Time each method for sampled weight gradients, and the dense product, on ViT-B/16's matrices.

python scripts/bench_sampled.py          # writes results/tables/sampled_gradients_cpu.csv, < 2 min

The rule in so_clip/optim/sampled_product.py is based on this table; the column `chosen` shows the
rule's choice. Times are the best of a few interleaved repeats. With one thread they are processor
times, which are also valid on a shared machine.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from so_clip.optim.sampled_product import fastest, sampled_product
from so_clip.optim.support import draw_supports, entry_count
from so_clip.system.atomic import write_text

TABLE = Path(__file__).resolve().parent.parent / "results/tables/sampled_gradients_cpu.csv"
MATRICES = {"in_proj": (2304, 768), "out_proj": (768, 768), "c_fc": (3072, 768)}
MATRICES |= {"c_proj": (768, 3072), "tiny c_fc": (512, 128)}
# 8 and 32 images of 197 tokens; 32 images only at two densities.
DENSITIES = {1576: (5e-5, 5e-4, 1e-3, 2e-3, 1e-2, 5e-2, 0.1, 0.2), 6304: (5e-4, 1e-2)}
METHODS = ("columns", "gather", "csr", "rows")
MAX_GATHERED = 1e-2  # gathering is far too slow at higher densities
REPEATS = 5


def main() -> None:
    """Read the arguments, measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for tokens, densities in DENSITIES.items():
        for name, shape in tqdm(MATRICES.items(), f"{tokens} tokens", dynamic_ncols=True):
            rows += measure(name, shape, tokens, densities)
    table = pd.DataFrame(rows)
    table["threads"], table["torch"], table["hardware"] = options.threads, torch.__version__, cpu()
    write_text(options.out, table.to_csv(index=False))
    print(table[table["chosen"] != ""].iloc[:, :-3].to_string(index=False))


def measure(
    name: str, shape: tuple[int, int], tokens: int, densities: tuple[float, ...]
) -> list[dict[str, object]]:
    """Return a row for each density and method, and one for the dense product."""
    generator = torch.Generator().manual_seed(0)
    g_NO = torch.randn(tokens, shape[0], generator=generator)
    x_NI = torch.randn(tokens, shape[1], generator=generator)
    calls: dict[tuple[float, str], Callable[[], Tensor]] = {(1.0, "dense"): lambda: g_NO.T @ x_NI}
    entries = {1.0: shape[0] * shape[1]}
    for density in densities:
        entries[density] = entry_count(shape[0] * shape[1], density)
        (support_M,) = draw_supports([shape[0] * shape[1]], [entries[density]], generator)
        for method in METHODS:
            if density <= MAX_GATHERED or method in ("csr", "rows"):
                kept = x_NI[:, support_M % shape[1]] if method == "columns" else x_NI
                calls[density, method] = partial(
                    sampled_product, g_NO, kept, support_M, shape[1], method
                )
    best = best_milliseconds(calls)
    choices = {d: fastest(entries[d], shape, torch.device("cpu")) for d in densities}
    return [
        {
            "matrix": name,
            "out_features": shape[0],
            "in_features": shape[1],
            "tokens": tokens,
            "density": density,
            "entries": entries[density],
            "method": method,
            "milliseconds": round(milliseconds, 3),
            "times_faster_than_dense": round(best[1.0, "dense"] / milliseconds, 2),
            "chosen": _chosen(method, *choices.get(density, ("", True))),
        }
        for (density, method), milliseconds in best.items()
    ]


def _chosen(method: str, chosen: str, faster: bool) -> str:
    return "" if method != chosen else "yes" if faster else "if sampled_gradients=true"


def best_milliseconds(
    calls: dict[tuple[float, str], Callable[[], Tensor]],
) -> dict[tuple[float, str], float]:
    """Call all in turn, after a warm-up round, and return the best time of each."""
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for repeat in range(REPEATS + 1):
        for key, call in calls.items():
            start = now()
            call()
            if repeat:
                best[key] = min(best[key], 1e3 * (now() - start))
    return best


def cpu() -> str:
    """Return the processor's name and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names) or '?'} cores"


if __name__ == "__main__":
    main()
