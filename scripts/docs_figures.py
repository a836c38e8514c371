"""Draw the pictures of the pages on concepts, from real steps of SO on small matrices.

python scripts/docs_figures.py  # docs/figures/*-light.svg and *-dark.svg, in a few seconds

The optimizer is the one of training, so_clip.SO. Each new run writes the same bytes.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from scripts.docs_site.figure_style import FIGURES, Scheme, new_figure, save_pair

# A small matrix and a high density, so that single entries can be seen.
SIDE, DENSITY, LR = 8, 0.08, 0.1
# What an entry does in a step, and the hue that shows it.
READ_AND_MOVED, MOVED_ONLY, READ_ONLY = "read and moved", "moved by its moments", "read, not kept"
HUES = {READ_AND_MOVED: "blue", MOVED_ONLY: "orange", READ_ONLY: "muted"}


@dataclass(frozen=True)
class Step:
    """One step of SO on one matrix; flat indices of its entries.

    Attributes:
        read: entries whose gradient the step read, the support.
        moved: entries whose weight changed.
    """

    read: frozenset[int]
    moved: frozenset[int]

    def kinds(self) -> dict[str, list[int]]:
        """Return the entries that do something, by kind."""
        return {
            READ_AND_MOVED: sorted(self.read & self.moved),
            MOVED_ONLY: sorted(self.moved - self.read),
            READ_ONLY: sorted(self.read - self.moved),
        }


@cache
def regression(steps: int, *, density: float, T: int, side: int = SIDE) -> list[Step]:
    """Train a matrix by SO on a linear regression with random batches, and record each step."""
    import torch

    from so_clip import SO

    numbers = np.random.default_rng(1)
    wanted = torch.from_numpy(numbers.normal(size=(side, side)))
    weight = torch.nn.Parameter(torch.zeros(side, side, dtype=torch.float64))
    optimizer = SO([weight], lr=LR, density_ratio=density, T=T)
    recorded = []
    for _ in range(steps):
        inputs = torch.from_numpy(numbers.normal(size=(4, side)))
        before = weight.detach().clone()
        support = optimizer.support(weight)
        read = range(weight.numel()) if support is None else support.tolist()
        optimizer.zero_grad()
        (inputs @ (weight - wanted).T).square().mean().backward()
        optimizer.step()
        moved = (weight.detach() != before).flatten().nonzero().flatten().tolist()
        recorded.append(Step(frozenset(read), frozenset(moved)))
    return recorded


# A rectangle: its lower left corner, its width and its height.
Box = tuple[float, float, float, float]


def fill(axis: Any, scheme: Scheme, boxes: dict[str, list[Box]]) -> None:
    """Fill boxes by kind: one path for each kind, so that the file stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    for kind, places in boxes.items():
        if not places:
            continue
        outlines = [
            Outline([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], closed=True)
            for x, y, w, h in places
        ]
        look = look_of(kind, scheme)
        axis.add_patch(PathPatch(Outline.make_compound_path(*outlines), linewidth=0.4, **look))


def look_of(kind: str, scheme: Scheme) -> dict[str, Any]:
    """Return the fill of a kind; entries that do not move are pale."""
    colour = getattr(scheme, HUES[kind])
    return {
        "facecolor": colour,
        "edgecolor": scheme.paper,
        "alpha": 0.45 if kind == READ_ONLY else 1,
    }


def key(figure: Any, scheme: Scheme) -> None:
    """Add the legend of the three kinds below all panels."""
    from matplotlib.patches import Patch

    handles = [Patch(label=kind, linewidth=0.4, **look_of(kind, scheme)) for kind in HUES]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)


def moving_support(scheme: Scheme) -> Any:
    """Draw a matrix at four steps, and below all its entries over all steps."""
    steps = regression(40, density=DENSITY, T=10)
    figure = new_figure(height=4.6)
    top, below = figure.subfigures(2, 1, height_ratios=(1, 1.75))
    for axis, shown in zip(top.subplots(1, 4), (1, 10, 11, 31), strict=True):
        boxes: dict[str, list[Box]] = {
            kind: [(entry % SIDE, SIDE - 1 - entry // SIDE, 1, 1) for entry in entries]
            for kind, entries in steps[shown - 1].kinds().items()
        }
        fill(axis, scheme, boxes)
        axis.set(xlim=(0, SIDE), ylim=(0, SIDE), xticks=[], yticks=[], aspect="equal")
        axis.set_title(f"step {shown}", fontweight="normal")
        axis.grid(visible=False)
        axis.spines[["top", "right"]].set_visible(True)
    axis = below.subplots()
    raster(axis, scheme, steps)
    axis.set(xlabel="step", ylabel="entry of the matrix")
    key(below, scheme)
    return figure


def raster(axis: Any, scheme: Scheme, steps: Sequence[Step]) -> None:
    """Draw the steps from left to right, and the entries from top to bottom."""
    boxes: dict[str, list[Box]] = {kind: [] for kind in HUES}
    for kind in HUES:
        for entry in range(SIDE * SIDE):
            busy = [entry in step.kinds()[kind] for step in steps]
            boxes[kind] += [(first + 0.5, entry, length, 1) for first, length in spans(busy)]
    fill(axis, scheme, boxes)
    axis.set(xlim=(0.5, len(steps) + 0.5), ylim=(SIDE * SIDE, 0))
    axis.set_yticks([0, SIDE * SIDE // 2, SIDE * SIDE])
    axis.grid(visible=False)


def spans(busy: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (first, length) of each run of true values."""
    found, place = [], 0
    for value, group in groupby(busy):
        length = len(list(group))
        if value:
            found.append((place, length))
        place += length
    return found


def refresh_interval(scheme: Scheme) -> Any:
    """Draw the entries over steps for three values of T."""
    figure = new_figure(height=3.1)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, T in zip(axes, (0, 1, 10), strict=True):
        raster(axis, scheme, regression(40, density=DENSITY, T=T))
        axis.set_title(f"T = {T}", fontweight="normal")
        axis.set(xlabel="step", xticks=[1, 20, 40])
    axes[0].set_ylabel("entry of the matrix")
    key(figure, scheme)
    return figure


def coverage(scheme: Scheme) -> Any:
    """Draw how many entries of a larger matrix have moved at least once, for some T."""
    side, steps, density = 100, 500, 0.005
    figure = new_figure(height=2.7)
    axis = figure.subplots()
    lines = {1: ("blue", "-"), 10: ("vermillion", "--"), 50: ("green", "-."), 0: ("purple", ":")}
    for T, (hue, style) in lines.items():
        seen: set[int] = set()
        percents = []
        for step in regression(steps, density=density, T=T, side=side):
            seen |= step.moved
            percents.append(100 * len(seen) / side**2)
        axis.plot(
            range(1, steps + 1), percents, style, color=getattr(scheme, hue), label=f"T = {T}"
        )
    axis.set(xlabel="step", ylabel="entries moved so far (%)", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


# One step of both orders: a vector of 12 entries, 3 of them kept, and these gradients.
ENTRIES, KEPT, ORDERS = 12, 3, ("prune_first", "update_first")
ORDER_SEED = 4


@dataclass(frozen=True)
class OneStep:
    """A step after the support was drawn again, in both orders.

    Attributes:
        mu: the moments of the union before pruning, by entry.
        kept: entries that keep their moments.
        change: of the weights by order; 0 where an entry does not move.
    """

    mu: dict[int, float]
    kept: frozenset[int]
    change: dict[str, list[float]]


def one_step() -> OneStep:
    """Take two steps, then the third, in which the first support and the new one meet."""
    import torch

    from so_clip import SO

    gradients_SE = np.random.default_rng(ORDER_SEED).uniform(0.3, 1, size=(3, ENTRIES))
    change, mu, kept = {}, {}, frozenset[int]()
    for order in ORDERS:
        weight = torch.nn.Parameter(torch.zeros(ENTRIES, dtype=torch.float64))
        optimizer = SO(
            [weight], lr=1.0, density_ratio=KEPT / ENTRIES, T=2, order=order, seed=ORDER_SEED
        )
        for gradient_E in gradients_SE:
            before = weight.detach().clone()
            mu = moments_of_union(optimizer, weight, gradient_E)
            weight.grad = torch.from_numpy(gradient_E)
            optimizer.step()
            change[order] = (weight.detach() - before).tolist()
        kept = frozenset(optimizer.state[weight]["index"].tolist())
    return OneStep(mu, kept, change)


def moments_of_union(optimizer: Any, weight: Any, gradient_E: Any) -> dict[int, float]:
    """Return μ = 0.9 μ + 0.1 g~ of the entries that are read or have moments, by entry."""
    read = optimizer.support(weight).tolist()
    state = optimizer.state[weight]
    mu = dict.fromkeys(read, 0.0)
    if "exp_avg" in state:
        mu |= dict(zip(state["index"].tolist(), state["exp_avg"].tolist(), strict=True))
    return {
        entry: 0.9 * value + (0.1 * float(gradient_E[entry]) if entry in read else 0.0)
        for entry, value in mu.items()
    }


def orders(scheme: Scheme) -> Any:
    """Draw the moments before pruning, and what each order moves."""
    step = one_step()
    figure = new_figure(height=4.2)
    axes = figure.subplots(3, 1, sharex=True)
    entries = list(range(ENTRIES))
    values = [
        [step.mu.get(entry, 0.0) for entry in entries],
        *([-value for value in step.change[order]] for order in ORDERS),
    ]
    titles = [
        "First moments |μ| of the union",
        "prune_first (paper): only kept entries move",
        "update_first (released code): all of the union moves",
    ]
    for axis, heights, title in zip(axes, values, titles, strict=True):
        for entry, height in zip(entries, heights, strict=True):
            if height:
                is_kept = entry in step.kept
                axis.bar(
                    entry + 1,
                    height,
                    color=scheme.blue if is_kept else "none",
                    edgecolor=scheme.blue if is_kept else scheme.muted,
                    hatch=None if is_kept else "////",
                    linewidth=0.8,
                )
        axis.set_title(title, fontweight="normal", loc="left")
        axis.set(ylim=(0, None), xlim=(0.4, ENTRIES + 0.6))
        axis.grid(visible=False, axis="x")
    axes[0].set_ylabel("|μ|")
    for axis in axes[1:]:
        axis.set_ylabel("change / lr")
    axes[2].set(xlabel="entry", xticks=range(1, ENTRIES + 1))
    kept_key(figure, scheme)
    return figure


def kept_key(figure: Any, scheme: Scheme) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(color=scheme.blue, label="kept after the step"),
            Patch(facecolor="none", edgecolor=scheme.muted, hatch="////", label="dropped"),
        ],
        loc="outside lower center",
        ncols=2,
    )


PICTURES: dict[str, Callable[[Scheme], Any]] = {
    "moving_support": moving_support,
    "refresh_interval": refresh_interval,
    "coverage": coverage,
    "orders": orders,
}


def main(folder: Path = FIGURES) -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        save_pair(draw, name, folder)


if __name__ == "__main__":
    main()
