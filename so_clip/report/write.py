"""Write a report: the tables, the significance, the plots and, last, the page."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from so_clip.errors import InputError
from so_clip.report.formats import latex
from so_clip.report.formats.files import (
    SIGNIFICANCE_FILE,
    write_significance,
    write_tables,
)
from so_clip.report.missing import add_missing
from so_clip.report.page import write as page
from so_clip.report.page.data import frame_data
from so_clip.report.pairs import pairs_of
from so_clip.report.plots import write as plots
from so_clip.report.published import add_published
from so_clip.report.read import Runs, read_runs
from so_clip.report.significance import compare
from so_clip.report.table import Table
from so_clip.report.tables import make_tables
from so_clip.system import atomic
from so_clip.system.commands import install

FOLDER, ALL = "tables", "all.tex"
_PACKAGES = ("jinja2", "matplotlib", "scipy")


def write_report(
    results_dir: Path,
    out: Path,
    *,
    tables_only: bool = False,
    details: Sequence[str] = (),
    add_flops: Callable[[Runs], tuple[Runs, list[str]]] | None = None,
) -> tuple[list[str], list[str]]:
    """Write the report of all runs below `results_dir` into the folder `out`.

    Args:
        results_dir: the folder of the runs.
        out: the report's folder.
        tables_only: write no significance, plots or page.
        details: names of runs whose details the page must have.
        add_flops: returns the runs with `train_flops`, and problems. The forecast is above this
            room, so the caller passes it in.

    Returns:
        The missing runs and the report's place, line by line; and the problems.

    Raises:
        InputError: no run can be used, a name in `details` is no run, a package is missing, or
            `out` cannot be written.
    """
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if absent:
        raise InputError(
            f"the report needs {', '.join(absent)}: not installed. "
            f"Get it with: {install('so-clip[report]')}"
        )
    if details and tables_only:
        raise InputError(
            f"--details {details[0]}: --tables-only writes no page. Leave out one of the two."
        )
    runs = read_runs(results_dir)
    places = page.places_of(details, runs)
    remarks = [f"left out: {reason}" for reason in runs.skipped]
    if add_flops:
        runs, unknown = add_flops(runs)
        remarks += unknown
    tables, lines = add_missing(make_tables(runs), runs)
    tables = add_published(tables, runs)
    names = write_tables(tables, out / FOLDER)
    atomic.write_text(out / FOLDER / ALL, latex.document(names))
    if not tables_only:
        remarks += _write_page(runs, tables, names, out, places)
    written = f"tables in {out}" if tables_only else f"page: {out / page.FILE}"
    return [*lines, f"{runs.counted}; {written}"], remarks


def _write_page(
    runs: Runs, tables: Sequence[Table], names: list[str], out: Path, details: Sequence[int]
) -> list[str]:
    """Write significance, plots and last the page; return remarks for the user."""
    comparisons, remarks = compare(runs)
    frames = []
    if len(comparisons):
        parts = pairs_of(runs.frame, comparisons)
        frames = [
            frame_data(SIGNIFICANCE_FILE, part.title, part.caption, part.frame) for part in parts
        ]
        names = [*names, write_significance(comparisons, parts, out / FOLDER)]
        atomic.write_text(out / FOLDER / ALL, latex.document(names))
    notes = [*(f"Left out: {reason}" for reason in runs.skipped), *remarks]
    drawn, about_plots = plots.write(runs.frame, out)
    page.write(runs, tables, out, drawn, details=details, notes=notes, frames=frames)
    return [*remarks, *about_plots]
