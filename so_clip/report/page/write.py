"""The report's page: one HTML file that needs no network, with tables, plots and a page a run."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.errors import InputError, nearest
from so_clip.report.page.data import (
    Frame,
    folder_names,
    frame_data,
    run_data,
    script_json,
    table_data,
)
from so_clip.report.page.run_details import read_details
from so_clip.report.page.thumbnails import Thumbnails
from so_clip.report.plots import style
from so_clip.report.plots.drawing import Plot
from so_clip.report.plots.svg import inline
from so_clip.report.progress_bar import watched
from so_clip.report.read import Runs
from so_clip.report.tables import Table
from so_clip.system import atomic

ASSETS = Path(__file__).parents[1] / "assets"
# In the order in which they build on each other.
SCRIPTS = ("dom.js", "store.js", "grid.js", "charts.js", "tables.js", "runs.js", "run.js", "app.js")
# Of the whole file, of its plots, and runs with details: reading a run's files takes time too.
MAX_BYTES, MAX_PLOT_BYTES, MAX_DETAILS = 9_500_000, 3_000_000, 250


def write(
    runs: Runs,
    tables: Sequence[Table],
    out: Path,
    plots: Sequence[Plot] = (),
    *,
    details: Sequence[str] = (),
    notes: Sequence[str] = (),
    frames: Sequence[Frame] = (),
) -> Path:
    """Write the page and return its path.

    The page holds every run's figures and settings. Confusion matrix, reliability, classes,
    training curve and mistakes are there for as many runs as its size allows: first those in
    `details`, then by turns the most accurate (of each dataset and number of shots) and the newest.

    Args:
        runs: all runs.
        tables: what is shown first.
        out: the report's folder.
        plots: shown after the tables, as many as the size allows.
        details: names of run folders whose details are wanted.
        notes: sentences for the reader, such as what was left out and why.
        frames: further tables.

    Raises:
        InputError: a name in `details` is no run, jinja2 is not there, or the file cannot be
            written.
    """
    try:
        import jinja2
    except ImportError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed. "
            "Get it with: pip install 'so-clip[report]'"
        ) from error
    names = folder_names(runs)
    order = detail_order(runs.frame, [_find(name, runs, names) for name in details])
    data = run_data(runs) | {
        "tables": [table_data(table) for table in tables],
        "frames": frame_data(frames),
        "notes": list(notes),
        "out": str(out),
    }
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}\n}})();'
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((ASSETS / "page.html").read_text(encoding="utf-8"))
    shown, left_out = _plots(plots)
    fixed: dict[str, Any] = {
        "css": colours() + (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "counts": _counts(runs.frame),
        "plots": shown,
        "plots_left_out": left_out,
        "data": script_json(data),
    }
    room = MAX_BYTES - len(template.render(fixed | {"details": "{}", "runs": []}).encode())
    common, of_runs = _details(runs, order, room)
    page = template.render(fixed | {"details": common, "runs": of_runs})
    file = out / "index.html"
    atomic.write_text(file, page)
    return file


def detail_order(runs: pd.DataFrame, wanted: Sequence[int] = ()) -> list[int]:
    """Return the places of all runs, those first whose details matter most.

    `wanted`, then in turns the best ones, the first of each dataset and shots before any second,
    and the newest ones.
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
    every: Iterable[Any] = chain(wanted, (place for place in turns if place is not None))
    return [int(place) for place in dict.fromkeys(every)]


def colours() -> str:
    """Return the CSS variables that page and plots are coloured by, light and, on screens, dark."""
    plots = {name: (colour, dark) for colour, (name, dark) in style.THEMED.items()}
    every = style.PAGE | {f"plot-{name}": pair for name, pair in plots.items()}
    every |= {"plot-paper": style.PAPER}
    light, dark = (
        f"color-scheme: {scheme};"
        + "".join(f"--{name}:{pair[at]};" for name, pair in every.items())
        for at, scheme in enumerate(("light", "dark"))
    )
    return (
        f":root {{{light}}}\n"
        f'@media screen and (prefers-color-scheme: dark) {{:root:not([data-theme="light"]) '
        f"{{{dark}}}}}\n"
        f'@media screen {{:root[data-theme="dark"] {{{dark}}}}}\n'
    )


def _find(name: str, runs: Runs, names: Sequence[str]) -> int:
    """Return the place of the run that a user means by its folder's name or path."""
    wanted = name.rstrip("/")
    paths = [str(folder) for folder in runs.frame["folder"]]
    found = [at for at, each in enumerate(names) if wanted in (each, paths[at])]
    found = found or [at for at, each in enumerate(names) if Path(each).name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(names[at] for at in found)
        raise InputError(f"--details {name}: several runs have that name: {several}. Choose one.")
    raise InputError(
        f"--details {name}: there is no finished run of that name.{nearest(wanted, names)}"
    )


def _counts(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what the page's head counts: number and noun each."""
    counted = (
        (len(runs), "run", "runs"),
        (runs["dataset"].nunique(), "dataset", "datasets"),
        (runs["method_title"].nunique(), "method", "methods"),
        (runs["backbone"].nunique(), "backbone", "backbones"),
    )
    return [(f"{count:,}", one if count == 1 else more) for count, one, more in counted]


def _plots(plots: Sequence[Plot]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the plots by title, each with its choices, and the names of those without room."""
    room = MAX_PLOT_BYTES
    groups: dict[str, list[dict[str, Any]]] = {}
    left_out = []
    for plot in plots:
        label = ", ".join(filter(None, (plot.title, plot.choice))) + ". " + plot.caption
        svg = inline(plot.svg, plot.name, label)
        size = len(svg.encode())
        if size > room:
            left_out.append(plot.name)
            continue
        room -= size
        each = {"name": plot.name, "choice": plot.choice, "caption": plot.caption, "svg": svg}
        groups.setdefault(plot.title, []).append(each)
    return [{"title": title, "choices": choices} for title, choices in groups.items()], left_out


def _details(runs: Runs, order: Sequence[int], room: float) -> tuple[str, list[tuple[int, str]]]:
    """Return what runs share (class names, pictures), and each run's details, as JSON.

    Runs are taken in `order` as long as there is `room` (bytes); one that does not fit is passed
    over for smaller ones, a few times.
    """
    thumbnails = Thumbnails()
    names: dict[tuple[tuple[int, str], ...], int] = {}
    pictures: dict[str, int] = {}
    of_runs: list[tuple[int, str]] = []
    patience = 20
    for place in watched(order[: MAX_DETAILS + patience], "page"):
        run = runs.frame.iloc[place]
        found = read_details(Path(run["folder"]), run["settings"], thumbnails)
        fresh = {uri: len(pictures) for uri in found.pictures.values() if uri not in pictures}
        numbers = pictures | {uri: len(pictures) + at for at, uri in enumerate(fresh)}
        values = found.values | {
            "names": names.get(found.names, len(names)),
            "pictures": {path: numbers[uri] for path, uri in found.pictures.items()},
        }
        text = script_json(values)
        size = len(text.encode()) + sum(map(len, fresh)) + 4 * len(fresh) + 80
        if found.names not in names:
            size += len(script_json(found.names).encode())
        if size > room:
            patience -= 1
            if not patience:
                break
            continue
        room -= size
        names.setdefault(found.names, len(names))
        pictures = numbers
        of_runs.append((place, text))
        if len(of_runs) == MAX_DETAILS:
            break
    return script_json({"names": list(names), "pictures": list(pictures)}), sorted(of_runs)
