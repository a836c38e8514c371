"""The missing runs of a table, and the command of the sweep that does them."""

import json
from pathlib import Path

import pytest

from so_clip.report.missing import add_missing
from so_clip.report.read import read_runs
from so_clip.report.table import Table
from so_clip.report.tables import make_tables
from tests.helpers.report_runs import write_grid, write_provenance, write_run

SKIPS = "The sweep's own command runs what is missing and skips finished runs"


def _missing(root: Path) -> tuple[Table, list[str]]:
    """Return the accuracy table and the printed lines."""
    runs = read_runs(root)
    tables, printed = add_missing(make_tables(runs), runs)
    return tables[0], printed


def _sweep(
    root: Path, jobs: list[list[str]], done: dict[int, str], name: str = "1", command: str = ""
) -> None:
    """Write a sweep's folder; `done` has the folders of finished runs by job number."""
    folder = root / ".sweeps" / name
    (folder / "jobs").mkdir(parents=True)
    values = {"command": ["so_clip", *command.split()], "started_at": "2026-11-22", "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(values))
    for number, run in done.items():
        job = {"overrides": jobs[number], "state": "done", "run_dir": str(root / run)}
        (folder / "jobs" / f"{number}.json").write_text(json.dumps(job))


def test_a_complete_table_has_no_note(tmp_path):
    write_grid(tmp_path)
    table, printed = _missing(tmp_path)
    assert (table.notes, printed) == ((), [])


def test_missing_cells_and_seeds_are_listed_in_the_table_and_printed(tmp_path):
    folders = write_grid(tmp_path)
    missing = [("so", "dtd", seed) for seed in (1, 2, 3)] + [("clip_lora", "eurosat", 2)]
    for key in missing:
        (folders[key] / "metrics.json").unlink()
    table, printed = _missing(tmp_path)
    lines = (
        "Missing at 4 shots: CLIP-LoRA: EuroSAT (seed 2).",
        "Missing at 4 shots: SO: DTD (seeds 1, 2, 3).",
    )
    assert table.notes == (*lines, f"{SKIPS}.")
    assert printed == [f"{table.caption}:", *(f"  {line}" for line in lines), f"{SKIPS}."]


def test_zero_shot_can_miss_a_dataset(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path, "z", dataset="dtd", method="zero_shot", method_title="Z", shots=0, seed=0)
    table, _ = _missing(tmp_path)
    assert table.notes[0] == "Missing without shots: Z: EuroSAT."


def test_unfinished_jobs_are_counted_with_the_commands_of_their_sweeps(tmp_path):
    """A seed that no sweep planned is not missing; a planned method that never started is."""
    folders = write_grid(tmp_path, methods=("so",), seeds=(1, 2))
    planned = [
        [f"method={method}", f"dataset={dataset}", f"seed={seed}"]
        for method in ("so", "clip_lora")
        for dataset in ("dtd", "eurosat")
        for seed in (1, 2)
    ]
    done = {
        number: folders["so", job[1][8:], int(job[2][5:])].name
        for number, job in enumerate(planned)
        if job[0] == "method=so"
    }
    _sweep(tmp_path, planned, done, "1", "-m method=so,clip_lora seed=1,2 force=true")
    _sweep(tmp_path, planned[:2], {}, "2", "-m method=so dataset=dtd seed=1,2")  # all done by "1"
    table, printed = _missing(tmp_path)
    lines = [
        "4 jobs of sweeps have no finished run.",
        f"{SKIPS}: python -m so_clip -m method=so,clip_lora seed=1,2",
    ]
    assert (table.notes, printed) == (tuple(lines), lines)


def test_an_empty_cell_of_a_sweep_is_listed(tmp_path):
    folders = write_grid(tmp_path, methods=("so", "clip_lora"), seeds=(1,))
    planned = [[f"method={method}", f"dataset={dataset}"] for method, dataset, _ in folders]
    names = {number: folder.name for number, folder in enumerate(folders.values())}
    _sweep(tmp_path, planned, names, command="-m method=so,clip_lora dataset=dtd,eurosat")
    for job, folder in zip(planned, folders.values(), strict=True):
        write_provenance(folder, overrides=job)
    (folders["so", "dtd", 1] / "metrics.json").unlink()
    table, _ = _missing(tmp_path)
    assert table.notes == (
        "Missing at 4 shots: SO: DTD (seed 1).",
        "1 job of a sweep has no finished run.",
        f"{SKIPS}: python -m so_clip -m method=so,clip_lora dataset=dtd,eurosat",
    )


@pytest.mark.parametrize("text", ["", "[]", '{"jobs": 3}', '{"jobs": [[1]]}'])
def test_a_damaged_sweep_file_is_ignored(tmp_path, text):
    write_grid(tmp_path)
    folder = tmp_path / ".sweeps" / "x"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(text)
    assert _missing(tmp_path)[1] == []


def test_many_rows_with_missing_runs_are_only_counted(tmp_path):
    for at in range(25):
        write_run(tmp_path, f"{at}", optimizer__lr=at + 1.0)
    write_run(tmp_path, "more", optimizer__lr=1.0, dataset="dtd")
    table, _ = _missing(tmp_path)
    assert len(table.notes) == 22
    assert table.notes[20] == "4 more rows have missing runs."


def test_complete_sweeps_do_not_promise_the_missing_runs(tmp_path):
    folder = write_run(tmp_path, "a", dataset="dtd")
    other = write_run(tmp_path, "b", dataset="eurosat", method="lora", method_title="LoRA")
    planned = [["dataset=dtd"], ["dataset=eurosat", "method=lora"]]
    for job, run in zip(planned, (folder, other), strict=True):
        write_provenance(run, overrides=job)
    _sweep(tmp_path, planned, {0: folder.name, 1: other.name}, command="-m dataset=dtd,eurosat")
    table, _ = _missing(tmp_path)
    assert table.notes[-1] == "All recorded sweeps are complete; no sweep contains these runs."
