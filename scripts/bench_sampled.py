"""Time sampled weight gradients against dense ones: linear layers of ViT-B/16 and convolutions.

python scripts/bench_sampled.py                  # writes results/tables/sampled_gradients_cpu.csv
python scripts/bench_sampled.py --convolutions   # and sampled_convolutions_cpu.csv; < 2 min each

The rules in so_clip/optim/sampled_product.py and sampled_convolution.py are based on these tables;
the column `chosen` shows the rule's choice. Times are the best of a few interleaved repeats. With
one thread they are processor times, and so also valid on a shared machine.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from so_clip.optim.sampled_convolution import is_faster, sampled_convolution
from so_clip.optim.sampled_product import fastest, sampled_product
from so_clip.optim.support import draw_supports, entry_count
from so_clip.system.atomic import write_text

COMMAND = "python scripts/bench_sampled.py"
TABLES = Path(__file__).resolve().parent.parent / "results/tables"
TABLE = TABLES / "sampled_gradients_cpu.csv"
CONVOLUTION_TABLE = TABLES / "sampled_convolutions_cpu.csv"
# Of ResNet-50, a small ResNet and ViT-B/16: the weight's shape, the stride, the input's side.
CONVOLUTIONS = {
    "stem": ((64, 3, 7, 7), 2, 224),
    "layer1 3x3": ((64, 64, 3, 3), 1, 56),
    "layer2 3x3": ((128, 128, 3, 3), 1, 28),
    "layer3 3x3": ((256, 256, 3, 3), 1, 14),
    "layer4 3x3": ((512, 512, 3, 3), 1, 7),
    "layer3 1x1": ((1024, 256, 1, 1), 1, 14),
    "layer4 downsample": ((2048, 1024, 1, 1), 2, 14),
    "small 3x3": ((16, 16, 3, 3), 1, 16),
    "patches": ((768, 3, 16, 16), 16, 224),
}
CONVOLUTION_DENSITIES = (5e-5, 5e-4, 2e-3, 5e-3, 1e-2, 2e-2)
IMAGES = 8
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
    parser.add_argument("--convolutions", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    if options.convolutions:
        out = options.out or CONVOLUTION_TABLE
        for name in tqdm(CONVOLUTIONS, "convolutions", dynamic_ncols=True):
            rows += measure_convolution(name, *CONVOLUTIONS[name])
    else:
        out = options.out or TABLE
        for tokens, densities in DENSITIES.items():
            for name, shape in tqdm(MATRICES.items(), f"{tokens} tokens", dynamic_ncols=True):
                rows += measure(name, shape, tokens, densities)
    table = pd.DataFrame(rows)
    table["command"] = COMMAND + (" --convolutions" if options.convolutions else "")
    table["threads"], table["torch"], table["hardware"] = options.threads, torch.__version__, cpu()
    write_text(out, table.to_csv(index=False))
    print(table[table["chosen"] != ""].iloc[:, :-4].to_string(index=False))


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


def measure_convolution(
    name: str, shape: tuple[int, int, int, int], stride: int, side: int
) -> list[dict[str, object]]:
    """Return a row for each density, and one for the dense gradient of a convolution's weight."""
    generator = torch.Generator().manual_seed(0)
    numel, kernel = math.prod(shape), shape[2]
    padding = 0 if stride == kernel else kernel // 2
    x_NIHW = torch.randn(IMAGES, shape[1], side, side, generator=generator)
    weight_OIHW = torch.randn(shape, generator=generator)
    g_NOPQ = torch.randn_like(F.conv2d(x_NIHW, weight_OIHW, None, stride, padding))
    settings = ([stride] * 2, [padding] * 2, [1, 1])
    calls: dict[tuple[float, str], Callable[[], Tensor]] = {
        (1.0, "dense"): lambda: torch.ops.aten.convolution_backward(
            g_NOPQ, x_NIHW, weight_OIHW, None, *settings, False, [0, 0], 1, [False, True, False]
        )[1]
    }
    entries = {1.0: numel}
    for density in CONVOLUTION_DENSITIES:
        entries[density] = entry_count(numel, density)
        (support_M,) = draw_supports([numel], [entries[density]], generator)
        calls[density, "gather"] = partial(
            sampled_convolution, g_NOPQ, x_NIHW, support_M, shape, *settings, 1
        )
    best = best_milliseconds(calls)
    return [
        {
            "convolution": name,
            "weight": "x".join(map(str, shape)),
            "stride": stride,
            "images": IMAGES,
            "side": side,
            "density": density,
            "entries": entries[density],
            "method": method,
            "milliseconds": round(milliseconds, 3),
            "times_faster_than_dense": round(best[1.0, "dense"] / milliseconds, 2),
            "chosen": "yes" if is_faster(entries[density], numel) else "",
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
