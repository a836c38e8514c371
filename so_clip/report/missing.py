"""The missing runs of the tables' cells, and the command that runs them.

If there are sweeps, their jobs say which runs were planned, so only empty cells are missing.
Without sweeps, the grid of finished runs says it: every method on every dataset with every seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from so_clip.report.read import Runs
from so_clip.report.table import Table
from so_clip.report.tables import table_runs
from so_clip.status.runs import DONE, Run
from so_clip.status.sweeps import Sweep, key_of, match_jobs, read_sweeps

# Only the cells of these tables stand for runs; the other tables show the same runs.
_TABLES_OF_RUNS = ("accuracy", "base_accuracy")
# Further rows are only counted.
_MAX_ROWS = 20
_HINT = "The sweep's own command runs what is missing and skips finished runs"
_NO_SWEEP = "All recorded sweeps are complete; no sweep contains these runs."


def add_missing(tables: Sequence[Table], runs: Runs) -> tuple[list[Table], list[str]]:
    """Add the missing runs to the notes of the accuracy tables.

    Returns:
        The tables; and the lines to print: missing runs by table, unfinished jobs of sweeps, and
        the commands of those sweeps. No lines if nothing is missing.
    """
    sweeps = read_sweeps(runs.results_dir, [])
    extended, printed = [], []
    for table in tables:
        lines = []
        if table.measure.name in _TABLES_OF_RUNS:
            lines = _missing_runs(table, runs, only_empty_cells=bool(sweeps))
        if lines:
            printed += [f"{table.caption}:", *(f"  {line}" for line in lines)]
        extended.append(replace(table, notes=(*table.notes, *lines)))
    hints, commands = _unfinished_sweeps(runs, sweeps)
    if hints or (printed and not sweeps):
        hints.append(f"{_HINT}: {'; '.join(commands)}" if commands else f"{_HINT}.")
    elif printed:
        hints.append(_NO_SWEEP)
    if hints and extended:
        extended[0] = replace(extended[0], notes=(*extended[0].notes, *hints))
    return extended, [*printed, *hints]


def _unfinished_sweeps(runs: Runs, sweeps: list[Sweep]) -> tuple[list[str], list[str]]:
    """Return a line that counts jobs without a finished run, and the commands of their sweeps."""
    if not sweeps:
        return [], []
    finished = {
        folder: Run(Path(folder).name, DONE, overrides=overrides)
        for frame in (runs.frame, runs.tasks)
        if len(frame)
        for folder, overrides in zip(frame["folder"], frame["overrides"], strict=True)
    }
    _, matched = match_jobs(finished, sweeps)
    commands: dict[str, None] = {}
    unfinished = set()
    for sweep, job_runs in matched:
        jobs = zip(sweep.jobs.values(), job_runs, strict=True)
        open_jobs = {key_of(overrides) for overrides, run in jobs if run.state != DONE}
        unfinished |= open_jobs
        if open_jobs and sweep.command:
            commands[sweep.command_line] = None
    if not unfinished:
        return [], []
    jobs_have = "job of a sweep has" if len(unfinished) == 1 else "jobs of sweeps have"
    return [f"{len(unfinished)} {jobs_have} no finished run."], list(commands)


def _missing_runs(table: Table, runs: Runs, only_empty_cells: bool) -> list[str]:
    """Return a line for each row with missing runs: its datasets and their seeds."""
    frame = table_runs(table.measure, runs.frame)
    frame = frame[frame["backbone"] == table.backbone]
    block_seeds: dict[int, set[int]] = {}
    finished: dict[Any, dict[str, set[int]]] = {}
    columns = ["shots", "method_title", "variant", "dataset", "seed"]
    for *row, dataset, seed in frame[columns].itertuples(index=False, name=None):
        block_seeds.setdefault(row[0], set()).add(seed)
        finished.setdefault(tuple(row), {}).setdefault(dataset, set()).add(seed)
    lines = []
    for (shots, title, variant), row_seeds in sorted(finished.items()):
        missing = {
            dataset: seeds
            for dataset in table.datasets
            if not (only_empty_cells and dataset in row_seeds)
            if (seeds := block_seeds[shots] - row_seeds.get(dataset, set()))
        }
        if missing:
            name = f"{title} ({variant})" if variant else title
            where = f"at {table.words.in_shots(shots)}" if shots else "without shots"
            if not shots:  # without training, no seed is drawn
                missing = {dataset: set() for dataset in missing}
            lines.append(f"Missing {where}: {name}: {_in_words(table, missing)}.")
    more = len(lines) - _MAX_ROWS
    return [*lines[:_MAX_ROWS], *([f"{more} more rows have missing runs."] if more > 0 else [])]


def _in_words(table: Table, missing: Mapping[str, set[int]]) -> str:
    titles = {column.key: column.title for column in table.columns}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for dataset, seeds in missing.items():
        by_seeds.setdefault(tuple(sorted(seeds)), []).append(titles[dataset])
    return "; ".join(", ".join(names) + _seeds_in_words(seeds) for seeds, names in by_seeds.items())


def _seeds_in_words(seeds: tuple[int, ...]) -> str:
    if not seeds:
        return ""
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
