"""What a table lacks, and the command that fills it.

Where there are sweeps, their jobs say what was meant to be done; where there are none, the grid of
what is there does: every method on every dataset with every seed of its block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from so_clip.report.commands import Overrides, compact, once, overrides_of, own_of, placed, shell
from so_clip.report.read import Runs
from so_clip.report.tables import Table, table_runs
from so_clip.status.runs import DONE, Run
from so_clip.status.sweeps import Key, Sweep, SweepFolders, key_of, match_jobs

# Tables whose cells are runs; the others lack what these lack.
_OF_RUNS = ("accuracy", "base_accuracy")
# More rows than that are only counted, more commands too.
_SHOWN = 20


def add_missing(tables: Sequence[Table], runs: Runs) -> list[Table]:
    """Return the tables; those of accuracy say what is missing and hold the commands that fill it.

    Jobs of sweeps that fill no cell of any table, since none of their kind is done yet, are told by
    the first.
    """
    sweeps = SweepFolders(runs.results_dir).read()
    undone = _undone(runs, sweeps)
    done = []
    for table in tables:
        if table.figure.name in _OF_RUNS:
            lines, wanted = _of_table(table, runs, whole_cells=bool(sweeps))
            for overrides in wanted:
                undone.pop(key_of(overrides), None)
            table = _told(table, lines, wanted, runs.results_dir)
        done.append(table)
    if undone and done:
        jobs = "job of a sweep has" if len(undone) == 1 else "jobs of sweeps have"
        lines = [f"{len(undone)} {jobs} no finished run."]
        done[0] = _told(done[0], lines, list(undone.values()), runs.results_dir)
    return done


def _told(
    table: Table, lines: Sequence[str], wanted: Sequence[Overrides], results_dir: Path
) -> Table:
    jobs = [placed(once(each), results_dir) for each in wanted]
    commands = [shell(*command) for command in compact(jobs)]
    if len(commands) > _SHOWN:
        lines = [*lines, f"{len(commands) - _SHOWN} more commands are left out here."]
    return replace(
        table,
        notes=(*table.notes, *lines),
        commands=(*table.commands, *commands[:_SHOWN]),
    )


def _undone(runs: Runs, sweeps: list[Sweep]) -> dict[Key, Overrides]:
    """Return the overrides of every job of the sweeps without a finished run, once each."""
    if not sweeps:
        return {}
    folders = {
        folder: Run(Path(folder).name, DONE, overrides=tuple(overrides or ()))
        for folder, overrides in zip(runs.frame["folder"], runs.frame["overrides"], strict=True)
    }
    _, per_sweep = match_jobs(folders, sweeps)
    return {
        key_of(sweep.jobs[number]): sweep.jobs[number]
        for sweep, of_jobs in per_sweep
        for number, run in zip(sorted(sweep.jobs), of_jobs, strict=True)
        if run.state != DONE
    }


def _of_table(table: Table, runs: Runs, whole_cells: bool) -> tuple[list[str], list[Overrides]]:
    """Return what a table lacks in words, a line a row, and as overrides, one of each run.

    Args:
        table: of runs of one backbone.
        runs: all of them.
        whole_cells: leave cells alone that have a run.
    """
    frame = table_runs(table.figure, runs.frame)
    frame = frame[frame["backbone"] == table.backbone]
    seeds: dict[int, set[int]] = {}
    have: dict[Any, dict[str, set[int]]] = {}
    like: dict[Any, int] = {}
    own = {
        dataset: own_of(settings)
        for dataset, settings in zip(frame["dataset"], frame["settings"], strict=True)
    }
    columns = ("shots", "method_title", "variant", "dataset", "seed")
    for at, (*row, dataset, seed) in enumerate(zip(*map(frame.get, columns), strict=True)):
        seeds.setdefault(row[0], set()).add(seed)
        have.setdefault(tuple(row), {}).setdefault(dataset, set()).add(seed)
        like.setdefault(tuple(row), at)
    lines, wanted = [], []
    for (shots, title, variant), of_row in sorted(have.items()):
        lacks = {
            name: seeds[shots] - of_row.get(name, set())
            for name in table.datasets
            if not (whole_cells and name in of_row)
        }
        lacks = {name: each for name, each in lacks.items() if each}
        if not lacks:
            continue
        name = f"{title} ({variant})" if variant else title
        where = f"at {shots} shots" if shots else "without shots"
        lines.append(f"Missing {where}: {name}: {_in_words(table, lacks)}.")
        if "processes=" in variant:  # by torchrun, which these commands do not start
            continue
        run = frame.iloc[like[shots, title, variant]].to_dict()
        wanted += [
            overrides_of(run, dataset, seed, own[dataset])
            for dataset, each in lacks.items()
            for seed in sorted(each)
        ]
    more = [f"{len(lines) - _SHOWN} more rows lack runs."] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more], wanted


def _in_words(table: Table, lacks: Mapping[str, set[int]]) -> str:
    titles = {column.key: column.title for column in table.columns}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for name, seeds in lacks.items():
        by_seeds.setdefault(tuple(sorted(seeds)), []).append(titles[name])
    return "; ".join(
        f"{', '.join(names)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for seeds, names in by_seeds.items()
    )
