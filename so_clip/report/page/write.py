"""Write the report's page: one HTML file that needs no network, with tables, plots and runs."""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.errors import InputError, nearest
from so_clip.report.page.data import (
    folder_names,
    run_data,
    script_json,
    table_data,
)
from so_clip.report.page.run_details import read_details
from so_clip.report.page.thumbnails import Thumbnails
from so_clip.report.plots import style
from so_clip.report.plots.drawing import Plot
from so_clip.report.plots.svg import inline
from so_clip.report.progress import watched
from so_clip.report.read import Runs
from so_clip.report.table import Table
from so_clip.system import atomic

FILE = "index.html"
ASSETS = Path(__file__).parents[1] / "assets"
# In order: later scripts use earlier ones.
SCRIPTS = (
    "dom.js",
    "address.js",
    "store.js",
    "grid.js",
    "charts.js",
    "matrix.js",
    "tables.js",
    "runs.js",
    "run.js",
    "app.js",
)
# A number with its sign and exponent, not the digits inside a word.
_NUMBER = re.compile(r"((?<![\w.])[-+−±]?\d(?:[\d.,]*\d)?(?:e[-+]?\d+)?)", re.IGNORECASE)
# Runs with details: reading the files of all runs would take long.
MAX_DETAILS = 250


def write(
    runs: Runs,
    tables: Sequence[Table],
    out: Path,
    plots: Sequence[Plot] = (),
    *,
    details: Sequence[int] = (),
    notes: Sequence[str] = (),
    frames: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the page and return its path.

    The page has scores and settings of every run. `MAX_DETAILS` runs also have confusion matrix,
    reliability, classes, training curve and mistakes: first the runs in `details`, then in turns
    the most accurate ones (of each dataset and number of shots) and the newest ones.

    Args:
        runs: all runs.
        tables: shown first.
        out: the report's folder.
        plots: shown after the tables.
        details: places of the runs whose details the page must have; see `places_of`.
        notes: sentences for the reader, such as reasons for left-out runs.
        frames: further tables, from `frame_data`.

    Raises:
        InputError: the file cannot be written.
    """
    import jinja2

    order = detail_order(runs.frame, details)
    data = run_data(runs, out) | {
        "tables": [table_data(table) for table in tables],
        "frames": list(frames),
        "notes": list(notes),
        "out": str(out),
    }
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}\n}})();'
    common, run_details = _details(runs, order[:MAX_DETAILS])
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = _unbroken
    template = environment.from_string((ASSETS / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        css=colours() + (ASSETS / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        counts=_counts(runs.frame),
        plots=_plots(plots),
        data=script_json(data),
        details=script_json(common),
        runs=run_details,
    )
    file = out / FILE
    atomic.write_text(file, page)
    return file


def places_of(names: Sequence[str], runs: Runs) -> list[int]:
    """Return the places of the runs whose folders have these names or paths.

    Raises:
        InputError: a name fits no run, or several.
    """
    known = folder_names(runs)
    return [_find(name, runs, known) for name in names]


def detail_order(runs: pd.DataFrame, wanted: Sequence[int] = ()) -> list[int]:
    """Return the places of all runs, the most interesting first.

    First `wanted`, then in turns the best runs and the newest runs. The best runs are ordered by
    their rank within dataset, backbone and shots, then by accuracy.
    """
    by = ["dataset", "backbone", "shots"]
    rank = runs.groupby(by)["accuracy_percent"].rank(ascending=False, method="first")
    places = pd.DataFrame({"rank": rank, "accuracy": runs["accuracy_percent"]})
    best = places.sort_values(["rank", "accuracy"], ascending=[True, False], kind="stable").index
    if "finished_at" in runs:
        finished = runs["finished_at"].map(lambda value: value if isinstance(value, str) else "")
        newest = finished.sort_values(ascending=False, kind="stable").index
    else:
        newest = best
    turns = chain.from_iterable(zip_longest(best, newest))
    ordered: Iterable[Any] = chain(wanted, (place for place in turns if place is not None))
    return [int(place) for place in dict.fromkeys(ordered)]


def colours() -> str:
    """Return the CSS variables for page and plots, light and, on screens, dark."""
    plots = {name: (colour, dark) for colour, (name, dark) in style.THEMED.items()}
    variables = style.PAGE | {f"plot-{name}": pair for name, pair in plots.items()}
    variables |= {"plot-paper": style.PAPER}
    light, dark = (
        f"color-scheme: {scheme};"
        + "".join(f"--{name}:{pair[at]};" for name, pair in variables.items())
        for at, scheme in enumerate(("light", "dark"))
    )
    return (
        f":root {{{light}}}\n"
        f'@media screen and (prefers-color-scheme: dark) {{:root:not([data-theme="light"]) '
        f"{{{dark}}}}}\n"
        f'@media screen {{:root[data-theme="dark"] {{{dark}}}}}\n'
    )


def _find(name: str, runs: Runs, names: Sequence[str]) -> int:
    """Return the place of the run whose folder has this name or path."""
    wanted = name.rstrip("/")
    paths = [str(folder) for folder in runs.frame["folder"]]
    found = [at for at, known in enumerate(names) if wanted in (known, paths[at])]
    found = found or [at for at, known in enumerate(names) if Path(known).name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(names[at] for at in found)
        raise InputError(f"--details {name}: several runs have that name: {several}. Choose one.")
    raise InputError(
        f"--details {name}: there is no finished run of that name.{nearest(wanted, names)}"
    )


def _unbroken(text: str) -> Any:
    """Return a text as HTML in which no line breaks inside a number; dom.js has the same."""
    from markupsafe import Markup, escape

    pieces = _NUMBER.split(text)
    return Markup("").join(
        Markup('<span class="whole">{}</span>').format(piece) if at % 2 else escape(piece)
        for at, piece in enumerate(pieces)
    )


def _counts(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the counts in the page's header: pairs of number and noun."""
    counted = (
        (len(runs), "run", "runs"),
        (runs["dataset"].nunique(), "dataset", "datasets"),
        (runs["method_title"].nunique(), "method", "methods"),
        (runs["backbone"].nunique(), "backbone", "backbones"),
    )
    return [(f"{count:,}", one if count == 1 else more) for count, one, more in counted]


def _plots(plots: Sequence[Plot]) -> list[dict[str, Any]]:
    """Return the plots grouped by title."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for plot in plots:
        label = ", ".join(filter(None, (plot.title, plot.choice))) + ". " + plot.caption
        choice = {"name": plot.name, "choice": plot.choice, "caption": plot.caption}
        choice["wide"] = inline(plot.svg, plot.name, label)
        choice["narrow"] = inline(plot.narrow, f"{plot.name}-narrow", label)
        groups.setdefault(plot.title, []).append(choice)
    return [{"title": title, "choices": choices} for title, choices in groups.items()]


def _details(runs: Runs, places: Sequence[int]) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """Return the class names and thumbnails that runs share, and each run's details as JSON."""
    thumbnails = Thumbnails()
    names: dict[tuple[tuple[int, str], ...], int] = {}
    pictures: dict[str, int] = {}
    run_details = []
    for place in watched(places, "page"):
        run = runs.frame.iloc[place]
        found = read_details(Path(run["folder"]), run["settings"], thumbnails)
        values = found.values | {
            "names": names.setdefault(found.names, len(names)),
            "pictures": {
                path: pictures.setdefault(uri, len(pictures))
                for path, uri in found.pictures.items()
            },
        }
        run_details.append((place, script_json(values)))
    return {"names": list(names), "pictures": list(pictures)}, sorted(run_details)
