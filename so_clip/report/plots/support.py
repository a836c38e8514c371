"""The fraction of weights that SO's support ever changed, by layer and tower."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.plots import style
from so_clip.report.plots.drawing import Drawing
from so_clip.report.plots.style import Line
from so_clip.report.wording import IMAGE_WORDS, SENTENCE_WORDS, wording_of
from so_clip.results.run_files import CHANGED_FILE, columns_if_whole

# At most this many rows, and runs per row, have their files read.
MAX_ROWS, MAX_RUNS = 3, 12
TOWERS = {"vision": "image tower", "text": "text tower"}
# A run on sentences has one encoder.
ENCODER = {"text": "encoder"}
# Roles of vectors. Runs on sentences train them densely beside SO's matrices.
DENSE = ("bias", "norm")
_PLACES = ("tower", "block", "role")
# Runs of earlier versions recorded names alone. Their matrices are those of open_clip's ViTs.
_LAYER = re.compile(r"^(?P<head>.*?)\.(?P<layer>\d+)\.(?P<kind>.+?)(\.weight)?$")
_OLD_ROLES = {
    "attn.in_proj": "attention_in",
    "attn.out_proj": "attention_out",
    "mlp.c_fc": "mlp_in",
    "mlp.c_proj": "mlp_out",
}


def support(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw, for SO and its variants, the fraction of each tensor that ever changed."""
    words = wording_of(runs)
    so = runs[[_is_sparse(settings) for settings in runs["settings"]]]
    for (backbone, shots), group in so.groupby(["backbone", "shots"], sort=True):
        by: Any = group.groupby(["method_title", "variant"], sort=True)
        rows = sorted(by, key=lambda row: -len(row[1]))
        numbers = _read(rows)
        if words is SENTENCE_WORDS and not numbers.empty:
            numbers = numbers[~numbers["kind"].isin(DENSE)]
        if numbers.empty:
            continue
        more = len(rows) > MAX_ROWS or any(len(row_runs) > MAX_RUNS for _, row_runs in rows)
        yield Drawing(
            f"support_{shots}{words.shot}_{style.in_file(str(backbone))}",
            "Weights ever changed by SO",
            "Percentage of each matrix's weights that differ from their values before training, by "
            "layer; mean over runs. The dotted line is the percentage of all "
            + ("trainable weights." if words is IMAGE_WORDS else "these matrices together.")
            + (" Other settings and runs are left out." if more else ""),
            partial(_draw, numbers, TOWERS if words is IMAGE_WORDS else ENCODER),
            numbers,
            choice=f"{backbone}, {words.in_shots(int(shots))}",
        )


def _is_sparse(settings: dict[str, Any]) -> bool:
    optimizer = settings.get("optimizer")
    return isinstance(optimizer, dict) and optimizer.get("density_ratio") is not None


def _read(rows: Sequence[tuple[tuple[str, str], pd.DataFrame]]) -> pd.DataFrame:
    """Return the changed and the total parameters by method, tower, layer and kind of tensor."""
    parts: list[pd.DataFrame] = []
    for (title, variant), group in rows:
        tables = [_table(Path(folder) / CHANGED_FILE) for folder in group["folder"].head(MAX_RUNS)]
        found = [table for table in tables if table is not None]
        if found:
            whole = pd.concat(found).groupby(["tower", "kind", "layer"], as_index=False).sum()
            parts.append(whole.assign(method=title, variant=variant, runs=len(found)))
        if len(parts) == MAX_ROWS:
            break
    if not parts:
        return pd.DataFrame()
    numbers = pd.concat(parts, ignore_index=True)
    return numbers.assign(changed_percent=100 * numbers["changed"] / numbers["parameters"])


def _table(path: Path) -> pd.DataFrame | None:
    """Read one changed.csv; None if it does not exist, or no tensor in it has a layer."""
    whole, texts = ("parameters", "changed"), ("tensor",)
    table = columns_if_whole(path, whole=whole, texts=(*texts, *_PLACES))
    if table is not None:
        recorded = zip(*(table[name] for name in _PLACES), strict=True)
        places = [_recorded_place(*cells) for cells in recorded]
    else:
        table = columns_if_whole(path, whole=whole, texts=texts)
        if table is None:
            return None
        places = [place_of(tensor) for tensor in table["tensor"]]
    rows = [
        (*place, parameters, changed)
        for place, parameters, changed in zip(
            places, table["parameters"], table["changed"], strict=True
        )
        if place is not None
    ]
    columns = ["tower", "kind", "layer", "parameters", "changed"]
    return pd.DataFrame(rows, columns=columns) if rows else None


def _recorded_place(tower: str, block: str, role: str) -> tuple[str, str, int] | None:
    return (tower, role, int(block)) if tower in TOWERS and block.isdecimal() else None


def place_of(tensor: str) -> tuple[str, str, int] | None:
    """Return tower, kind and layer of a tensor by its name; None if it is in no layer.

    Example:
        >>> place_of("visual.transformer.resblocks.3.mlp.c_fc.weight")
        ('vision', 'mlp_in', 3)
    """
    match = _LAYER.match(tensor)
    if match is None:
        return None
    tower = "vision" if match["head"].startswith("visual") else "text"
    return tower, _OLD_ROLES.get(match["kind"], match["kind"]), int(match["layer"])


def _draw(numbers: pd.DataFrame, names: Mapping[str, str], narrow: bool) -> Any:
    from matplotlib.figure import Figure

    groups = numbers[["method", "variant"]].drop_duplicates().to_records(index=False).tolist()
    towers = [tower for tower in names if tower in set(numbers["tower"])]
    rows, columns = (len(groups) * len(towers), 1) if narrow else (len(groups), len(towers))
    width = style.NARROW_INCHES if narrow else 3.2 * columns + 0.6
    figure = Figure(figsize=(width, 2.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    axes = grid.ravel().tolist()
    kinds = sorted(numbers["kind"].unique())[: style.MAX_LINES]
    for axis, ((method, variant), tower) in zip(axes, product(groups, towers), strict=True):
        cells = numbers[(numbers["method"] == method) & (numbers["variant"] == variant)]
        share = 100 * cells["changed"].sum() / cells["parameters"].sum()
        axis.axhline(share, color=style.INK, linestyle=":", linewidth=1)
        for kind, colour, marker in zip(kinds, style.colours(), style.MARKERS, strict=False):
            line = cells[(cells["tower"] == tower) & (cells["kind"] == kind)].sort_values("layer")
            axis.plot(
                line["layer"],
                line["changed_percent"],
                color=colour,
                marker=marker,
                label=kind.replace("_", " "),
            )
        axis.set_ylim(0, 1.1 * cells["changed_percent"].max() or 1)
        style.whole_ticks(axis.xaxis)
        name = method + (f" ({style.in_words(variant)})" if variant else "")
        title = f"{name}, {names[tower]}" if len(groups) > 1 else names[tower]
        style.panel_title(axis, title)
    style.label_axes(axes, "layer", "weights ever changed (%)")
    style.legend_below(figure, axes[:1])
    return figure
