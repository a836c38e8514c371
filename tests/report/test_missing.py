"""What a table lacks: told by cell, filled by a command that does those runs and no others."""

import json
import shlex
from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from so_clip.report.commands import compact, overrides_of, placed, shell

from so_clip.config.compose import compose
from so_clip.report.missing import add_missing
from so_clip.report.read import read_runs
from so_clip.report.tables import Table, make_tables
from tests.helpers.report_runs import VIT, write_grid, write_provenance, write_run

ROW = {"shots": 4, "seed": 1, "dataset": "dtd", "method": "so", "variant": "", "settings": {}}


def _accuracy(root: Path) -> Table:
    runs = read_runs(root)
    return add_missing(make_tables(runs), runs)[0]


def _without_place(command: str, root: Path) -> str:
    """Return a command without the folder for its results, which must be the one reported on."""
    place = shlex.quote(f"results_dir={root}")
    assert command.split().count(place) == 1
    return " ".join(each for each in command.split() if each != place)


def _jobs(commands) -> list[frozenset[str]]:
    """Return what the commands would run, as Hydra's basic sweeper takes them apart."""
    jobs = []
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "so_clip"]
        sweep = words[3] == "-m"
        options = words[4:] if sweep else words[3:]
        options = [each for each in options if not each.startswith("results_dir=")]
        values = [
            [f"{key}={each}" for each in value.split(",")] if sweep else [f"{key}={value}"]
            for key, _, value in (option.partition("=") for option in options)
        ]
        jobs += [frozenset(job) for job in product(*values)]
    assert len(jobs) == len(set(jobs))
    return jobs


def _sweep(root: Path, jobs: list[list[str]], done: dict[int, str]) -> None:
    """Write a sweep's folder as a sweep does; `done` names the folders of finished runs."""
    folder = root / ".sweeps" / "2026-11-22_12-00-00-000000"
    (folder / "jobs").mkdir(parents=True)
    values = {"command": ["so_clip", "-m"], "started_at": "2026-11-22T12:00:00", "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(values))
    for number, name in done.items():
        job = {"overrides": jobs[number], "state": "done", "run_dir": str(root / name)}
        (folder / "jobs" / f"{number}.json").write_text(json.dumps(job))


def test_a_whole_table_lacks_nothing(tmp_path):
    write_grid(tmp_path)
    table = _accuracy(tmp_path)
    assert (table.notes, table.commands) == ((), ())


def test_missing_cells_and_seeds_are_named_and_filled(tmp_path):
    folders = write_grid(tmp_path)
    gone = [("so", "dtd", 1), ("so", "dtd", 2), ("so", "dtd", 3), ("clip_lora", "eurosat", 2)]
    for key in gone:
        (folders[key] / "metrics.json").unlink()
    table = _accuracy(tmp_path)
    assert table.notes == (
        "Missing at 4 shots: CLIP-LoRA: EuroSAT (seed 2).",
        "Missing at 4 shots: SO: DTD (seeds 1, 2, 3).",
    )
    expected = {
        frozenset({f"method={m}", "backbone=tiny", f"dataset={d}", "shots=4", f"seed={seed}"})
        for m, d, seed in gone
    }
    assert set(_jobs(table.commands)) == expected
    assert len(table.commands) == 2


def test_what_torchrun_did_is_named_and_no_command_of_one_process(tmp_path):
    folders = write_grid(tmp_path, methods=("so",), processes=2)
    (folders["so", "dtd", 3] / "metrics.json").unlink()
    table = _accuracy(tmp_path)
    assert table.notes == ("Missing at 4 shots: SO (processes=2): DTD (seed 3).",)
    assert table.commands == ()


def test_a_missing_seed_of_all_is_one_command(tmp_path):
    folders = write_grid(tmp_path)
    for key, folder in folders.items():
        if key[0] == "so" and key[2] == 3:
            (folder / "metrics.json").unlink()
    (command,) = _accuracy(tmp_path).commands
    expected = "method=so backbone=tiny dataset=eurosat,dtd shots=4 seed=3"
    command = _without_place(command, tmp_path)
    assert sorted(command.split()) == sorted(f"python -m so_clip -m {expected}".split())


def test_the_command_repeats_what_a_run_of_the_row_was_given(tmp_path):
    folders = write_grid(tmp_path, methods=("so",))
    (folders["so", "dtd", 3] / "metrics.json").unlink()
    for folder in folders.values():
        given = ["--config-dir=/my conf", "experiment=demo", "data_root=/my data", "seed=1"]
        write_provenance(folder, overrides=[*given, "dataset=eurosat"])
    (command,) = _accuracy(tmp_path).commands
    assert shlex.split(command)[3:] == [
        *("--config-dir=/my conf", "experiment=demo", "data_root=/my data"),
        *("dataset=dtd", "seed=3", f"results_dir={tmp_path}"),
    ]


def test_folders_of_configurations_are_no_values_to_sweep_over():
    jobs = [(f"--config-dir=/{name}", f"seed={seed}") for name in "ab" for seed in (1, 2)]
    assert compact(jobs) == [
        (("--config-dir=/a", "seed=1,2"), True),
        (("--config-dir=/b", "seed=1,2"), True),
    ]


def test_an_experiment_sweeps_over_nothing_else(tmp_path):
    """Under -m an experiment would sweep by itself over what is not said."""
    for dataset, seed in (("dtd", 1), ("dtd", 2), ("dtd", 3), ("eurosat", 1)):
        folder = write_run(
            tmp_path, f"{dataset}{seed}", dataset=dataset, seed=seed, optimizer__T=10
        )
        write_provenance(folder, overrides=["experiment=kappa_t", f"dataset={dataset}"])
    (command,) = _accuracy(tmp_path).commands
    assert {"optimizer.density_ratio=0.0005", "optimizer.T=10", "seed=2,3"} <= set(command.split())


def test_without_a_command_the_settings_say_what_they_can(tmp_path):
    for seed, lr, backbone in ((1, 1e-3, VIT), (2, 1e-3, VIT), (1, 1e-2, VIT)):
        write_run(tmp_path, f"{seed}{lr}", seed=seed, optimizer__lr=lr, backbone=backbone)
    (job,) = _jobs(_accuracy(tmp_path).commands)
    assert job == {
        *("method=so", "backbone=vit_b16", "optimizer.lr=0.01", "dataset=digits", "shots=4"),
        "seed=2",
    }


def test_zero_shot_lacks_a_dataset_but_no_seed(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path, "z", dataset="dtd", method="zero_shot", method_title="Z", shots=0, seed=0)
    table = _accuracy(tmp_path)
    assert table.notes == ("Missing without shots: Z: EuroSAT (seed 0).",)
    assert _jobs(table.commands) == [
        frozenset({"method=zero_shot", "backbone=tiny", "dataset=eurosat"})
    ]


def test_what_was_left_to_the_defaults_is_left_to_them_again(tmp_path):
    """So that the job of a sweep and the cell that it fills are one run, told once."""
    write_grid(tmp_path, ["digits", "dtd"], ["so"], [1])
    planned = [["method=so", "dataset=digits"], ["method=so", "dataset=dtd"]]
    _sweep(tmp_path, planned, {0: "digits-so-4-1", 1: "dtd-so-4-1"})
    write_provenance(tmp_path / "digits-so-4-1", overrides=planned[0])
    write_grid(tmp_path, ["digits"], ["clip_lora"], [1])
    write_grid(tmp_path, ["dtd"], ["clip_lora"], [1])
    (tmp_path / "dtd-so-4-1" / "metrics.json").unlink()
    table = _accuracy(tmp_path)
    assert table.notes[-1] == "Missing at 4 shots: SO: DTD (seed 1)."
    assert _jobs(table.commands) == [frozenset(planned[1])]


def test_commands_compose(tmp_path):
    folders = write_grid(tmp_path, methods=("so",), backbone=VIT)
    (folders["so", "dtd", 3] / "metrics.json").unlink()
    (job,) = _jobs(_accuracy(tmp_path).commands)
    config = compose(sorted(job))
    assert (config.dataset.name, config.seed, config.backbone.pretrained) == ("dtd", 3, "openai")


def test_jobs_of_a_sweep_say_what_was_meant(tmp_path):
    """One seed was never planned, so it is not missing; a whole method was, and never began."""
    folders = write_grid(tmp_path, methods=("so",), seeds=(1, 2))
    write_grid(tmp_path / "other", methods=("adamw",), seeds=(1,))
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
    _sweep(tmp_path, planned, done)
    table = _accuracy(tmp_path)
    assert table.notes == ("4 jobs of sweeps have no finished run.",)
    (command,) = table.commands
    assert _without_place(command, tmp_path) == (
        "python -m so_clip -m method=clip_lora dataset=dtd,eurosat seed=1,2"
    )


def test_a_job_whose_cell_is_named_is_named_once(tmp_path):
    folders = write_grid(tmp_path, methods=("so", "clip_lora"), seeds=(1,))
    keys = list(folders)
    planned = [
        [f"method={m}", f"dataset={d}", "shots=4", f"seed={seed}", "precision=fp32"]
        for m, d, seed in keys
    ]
    _sweep(tmp_path, planned, {number: folders[key].name for number, key in enumerate(keys)})
    for key, job in zip(keys, planned, strict=True):
        write_provenance(folders[key], overrides=job)
    (folders["so", "dtd", 1] / "metrics.json").unlink()
    table = _accuracy(tmp_path)
    assert table.notes == ("Missing at 4 shots: SO: DTD (seed 1).",)
    assert _jobs(table.commands) == [frozenset(planned[0])]


@pytest.mark.parametrize("text", ["", "[]", '{"jobs": 3}', '{"jobs": [[1]]}'])
def test_a_sweep_that_cannot_be_read_harms_nothing(tmp_path, text):
    write_grid(tmp_path)
    folder = tmp_path / ".sweeps" / "x"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(text)
    assert _accuracy(tmp_path).commands == ()


def test_thousands_of_missing_rows_are_counted(tmp_path):
    for at in range(25):
        write_run(tmp_path, f"{at}", optimizer__lr=at + 1.0)
    write_run(tmp_path, "more", optimizer__lr=1.0, dataset="dtd")
    table = _accuracy(tmp_path)
    assert len(table.notes) == 21
    assert table.notes[-1] == "4 more rows lack runs."
    assert len(_jobs(table.commands)) == 24


jobs = st.lists(
    st.tuples(
        st.sampled_from(["method=a", "method=b"]),
        st.sampled_from(["dataset=x", "dataset=y", "dataset=z"]),
        st.sampled_from(["seed=1", "seed=2", "seed=10"]),
    ),
    min_size=1,
    unique=True,
)


@given(jobs)
def test_compact_commands_do_each_job_once(some):
    commands = compact(some)
    assert set(_jobs(shell(*command) for command in commands)) == set(map(frozenset, some))
    assert len(commands) <= len(some)


def test_compact_finds_a_grid():
    grid = list(product(["method=a", "method=b"], ["dataset=x", "dataset=y"], ["seed=2", "seed=1"]))
    assert compact(grid) == [(("method=a,b", "dataset=x,y", "seed=1,2"), True)]


def test_options_without_a_value_and_lists_stay_what_they_are():
    job = ("~optimizer.density_ratio", "transfer=[dtd,eurosat]", "template='a, b {}'")
    ((options, sweep),) = compact([job])
    assert (options, sweep) == (job, False)
    assert shlex.split(shell(options, sweep))[3:] == list(job)


def test_a_run_like_another_has_its_options_but_for_its_cell():
    given = ["method=so", "dataset=dtd", "dataset.split_file=x", "seed=7", "shots=4", "force=true"]
    assert overrides_of(ROW | {"overrides": given}, "fgvc", 2) == (
        *("method=so", "dataset=fgvc", "shots=4", "seed=2"),
    )


@pytest.mark.parametrize("name", ["x" * 5000, "../../pyproject", "../config", "a\x00b", ""])
def test_an_experiment_is_a_name_and_no_path(tmp_path, name):
    run = ROW | {"overrides": [f"experiment={name}"]}
    assert overrides_of(run, "fgvc", 1) == (f"experiment={name}", "dataset=fgvc")


def test_settings_are_written_as_hydra_reads_them():
    settings = {
        "template": "it's, a {}",
        "data_root": "/my data, (1)",
        "transfer": ["dtd", "a,b"],
        "imbalance": "1",
        "backbone": {"architecture": "x", "pretrained": None, "checkpoint": "a=b.pt"},
    }
    variant = "template=it's, transfer=x, imbalance=1"
    options = overrides_of(ROW | {"settings": settings, "variant": variant}, "dtd", 2)
    read = [OverridesParser.create().parse_override(each) for each in options]
    assert not any(each.is_sweep_override() for each in read)
    values = {each.key_or_group: each.value() for each in read}
    for key in ("template", "data_root", "transfer", "imbalance"):
        assert values[key] == settings[key]
    assert values["backbone.checkpoint"] == "a=b.pt"


def test_results_of_the_usual_folder_go_there_by_themselves(tmp_path):
    assert placed(("seed=1",), Path("results/runs")) == ("seed=1",)
    assert placed(("seed=1", "results_dir=x"), tmp_path) == ("seed=1", "results_dir=x")
    assert placed(("seed=1",), Path("a b, c")) == ("seed=1", "results_dir='a b, c'")
