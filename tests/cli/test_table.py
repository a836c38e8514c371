"""Tables from hand-made runs: averages over seeds only, and the runs that are left out."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from so_clip.report.averages import statistics
from so_clip.report.read import read_runs
from tests.helpers.command import Outcome, call, python
from tests.helpers.report_runs import squeezed, write_run


def _table(*arguments: object) -> Outcome:
    return call("table", *arguments)


def _cells(root: Path, column: str = "accuracy_percent") -> pd.DataFrame:
    return statistics(read_runs(root).frame, column)


def test_seeds_are_averaged_with_the_sample_deviation(tmp_path):
    for seed, accuracy in ((1, 50.0), (2, 54.0), (3, 61.0)):
        write_run(tmp_path, f"s{seed}", seed=seed, accuracy_percent=accuracy, peak_memory_mib=8.0)
    (cell,) = _cells(tmp_path).to_dict("records")
    assert cell["runs"] == 3
    assert cell["mean"] == pytest.approx(55.0)
    assert cell["std"] == pytest.approx(31**0.5)  # (25 + 1 + 36) / 2
    assert (cell["dataset"], cell["backbone"], cell["shots"]) == ("digits", "tiny", 4)
    (cell,) = _cells(tmp_path, "peak_memory_mib").to_dict("records")
    assert (cell["mean"], cell["std"]) == (8.0, 0.0)


def test_a_single_run_has_no_deviation(tmp_path):
    write_run(tmp_path, "s1")
    lines = squeezed(_table(tmp_path, "-o", tmp_path / "t").out).splitlines()
    assert lines[0] == "Test accuracy in percent, tiny: mean over 1 seed."
    assert lines[4] == "| 4 | SO | 50.00 | 10.0 |"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"optimizer__density_ratio": 5e-3}, "optimizer.density_ratio=0.005"),
        ({"optimizer__lr": 1e-3}, "optimizer.lr=0.001"),
        ({"adapter__rank": 4}, "adapter.rank=4"),
        ({"precision": "bf16"}, "precision=bf16"),
        ({"schedule__max_steps": 10}, "schedule.max_steps=10"),
        ({"backbone__pretrained": None}, "backbone.pretrained=None"),
        ({"split_sha256": "0123456789abcdef"}, "split=01234567"),
        ({"evaluation__precision": "bf16"}, "evaluation.precision=bf16"),
        ({"optimizer__T": 5}, "optimizer.T=5"),  # an option that only this run has
        ({"shots": 16}, None),
        ({"backbone__architecture": "ViT-B-16"}, None),
        ({"method": "adamw", "method_title": "AdamW"}, None),
        ({"dataset": "dtd"}, None),
    ],
)
def test_different_choices_are_never_averaged(tmp_path, changes, shown):
    write_run(tmp_path, "a", seed=1, accuracy_percent=10.0)
    write_run(tmp_path, "b", seed=2, accuracy_percent=90.0, **changes)
    cells = _cells(tmp_path)
    assert sorted(cells["mean"]) == [10.0, 90.0]
    assert list(cells["runs"]) == [1, 1]
    variants = set(cells["variant"])
    assert variants == {""} if shown is None else any(shown in variant for variant in variants)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_root": "elsewhere"},
        {"results_dir": "x"},
        {"evaluation": {"batch_size": 8, "workers": 0, "cache_dir": "y"}},
        {"threads": 2},
    ],
)
def test_paths_and_threads_make_no_other_variant(tmp_path, changes):
    write_run(tmp_path, "a", seed=1)
    write_run(tmp_path, "b", seed=2, **changes)
    assert list(_cells(tmp_path)["runs"]) == [2]


def test_settings_that_follow_from_the_shots_are_not_named(tmp_path):
    for shots in (1, 4):
        for seed in (1, 2):
            write_run(
                tmp_path,
                f"{shots}-{seed}",
                shots=shots,
                seed=seed,
                schedule__max_steps=2000 * shots,
            )
    cells = _cells(tmp_path)
    assert list(cells["variant"]) == ["", ""]
    assert list(cells["runs"]) == [2, 2]


def test_a_duplicate_run_counts_once(tmp_path):
    write_run(tmp_path, "a", seed=1, accuracy_percent=10.0)
    write_run(tmp_path, "b", seed=1, accuracy_percent=10.0, data_root="elsewhere")
    write_run(tmp_path, "c", seed=2, accuracy_percent=20.0)
    runs = read_runs(tmp_path)
    assert list(runs.frame["seed"]) == [1, 2]
    assert runs.skipped == [f"{tmp_path / 'b'}: repeats another run."]


def test_datasets_are_columns_and_complete_rows_have_an_average(tmp_path):
    for dataset, accuracy in (("dtd", 40.0), ("digits", 80.0)):
        write_run(tmp_path, dataset, dataset=dataset, accuracy_percent=accuracy)
    write_run(tmp_path, "adamw", method="adamw", method_title="AdamW", accuracy_percent=70.0)
    lines = squeezed(_table(tmp_path, "-o", tmp_path / "t").out).splitlines()
    assert lines[2] == "| shots | method | DTD | digits | average | memory (MiB) |"
    assert re.fullmatch(r"\|(:-+\|){2}(-+:\|){4}", lines[3])
    assert lines[4] == "| 4 | AdamW | – | 70.00 | – | – |"
    assert lines[5] == "| 4 | SO | 40.00 | **80.00** | 60.00 | 10.0 |"


def test_zero_shot_has_no_shots(tmp_path):
    write_run(tmp_path, "a", shots=0, seed=0, method="zero_shot", method_title="Zero-shot CLIP")
    assert "| - | Zero-shot CLIP | 50.00 |" in squeezed(_table(tmp_path, "-o", tmp_path / "t").out)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (None, "unfinished, it has no metrics.json"),
        ("", "cannot be read"),
        ('{"dataset": "dig', "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "dataset is None"),
        ({"accuracy_percent": "high"}, "accuracy_percent is 'high'"),
        ({"settings": None}, "settings is None"),
        ({"seed": None}, "seed is None"),
    ],
)
def test_an_unusable_run_is_left_out_by_name(tmp_path, metrics, reason):
    write_run(tmp_path, "good")
    bad = write_run(tmp_path, "bad", **(metrics if isinstance(metrics, dict) else {}))
    if metrics is None:
        (bad / "metrics.json").unlink()
    elif isinstance(metrics, str):
        (bad / "metrics.json").write_text(metrics)
    done = _table(tmp_path)
    assert done.code == 0
    assert len(done.messages) == 1
    assert done.err.startswith("so_clip: left out: ")
    assert str(bad) in done.err
    assert reason in done.err
    assert "\n1 run; tables in " in done.out


def test_hidden_folders_are_not_runs(tmp_path):
    write_run(tmp_path, "good")
    write_run(tmp_path, ".discarded-x/half")
    assert len(read_runs(tmp_path).frame) == 1


@pytest.mark.parametrize("place", ["", "nowhere", "file"])
def test_a_folder_without_runs_is_bad_input(tmp_path, place):
    (tmp_path / "file").write_text("")
    done = _table(tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert len(done.messages) == 1
    assert str(tmp_path / place) in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_writes_two_tables_as_csv_and_markdown(tmp_path):
    runs = tmp_path / "runs"
    for seed, accuracy in ((1, 50.0), (2, 54.0)):
        write_run(runs / "deep", f"s{seed}", seed=seed, accuracy_percent=accuracy)
    done = _table(runs)
    assert (done.code, done.err) == (0, "")
    names = sorted(path.name for path in (runs / "tables").iterdir())
    assert names == ["accuracy.csv", "accuracy.md", "memory.csv", "memory.md"]
    accuracy = pd.read_csv(runs / "tables" / "accuracy.csv", keep_default_na=False)
    assert list(accuracy.columns) == [
        *("dataset", "backbone", "shots", "method", "method_title", "variant", "mean", "std"),
        *("runs", "best", "source", "uncertainty"),
    ]
    assert accuracy.loc[0, ["dataset", "mean", "runs"]].tolist() == ["digits", 52.0, 2]
    assert float(accuracy.loc[0, "std"]) == pytest.approx(8**0.5)
    text = (runs / "tables" / "accuracy.md").read_text()
    assert "Test accuracy in percent, tiny: mean ± standard deviation over 2 seeds.\n" in text
    assert "| 4 | SO | 52.00 ± 2.83 | 10.0 |" in squeezed(text)
    assert text in done.out
    memory = (runs / "tables" / "memory.md").read_text()
    assert "| 4 | SO | 10.0 ± 0.0 |" in squeezed(memory)
    assert "MiB" in memory


def test_protocols_are_always_named(tmp_path):
    write_run(tmp_path, "a", protocol="base_to_new", imbalance=None)
    assert list(_cells(tmp_path)["variant"]) == ["protocol=base_to_new"]
    write_run(tmp_path, "b", protocol="all", imbalance=None)
    write_run(tmp_path, "c", protocol="all", imbalance=0.5)
    # An old run without these settings.
    settings = json.loads((tmp_path / "b" / "metrics.json").read_text())["settings"]
    for option in ("protocol", "transfer", "imbalance"):
        del settings[option]
    write_run(tmp_path, "d", seed=2, settings=settings)
    cells = _cells(tmp_path).set_index("variant")["runs"]
    assert dict(cells) == {"": 2, "imbalance=0.5": 1, "protocol=base_to_new": 1}


def test_base_to_new_runs_have_separate_tables(tmp_path):
    runs = tmp_path / "runs"
    for seed, new in ((1, 40.0), (2, 60.0)):
        figures = {"new_accuracy_percent": new, "harmonic_mean_percent": new + 5}
        write_run(runs, f"s{seed}", protocol="base_to_new", seed=seed, **figures)
    write_run(runs, "all", protocol="all")
    done = _table(runs)
    assert (done.code, done.err) == (0, "")
    for name, mean in (("new_accuracy", 50.0), ("harmonic_mean", 55.0)):
        (row,) = pd.read_csv(runs / "tables" / f"{name}.csv").to_dict("records")
        assert (row["mean"], row["runs"]) == (mean, 2)
        assert (runs / "tables" / f"{name}.md").is_file()
    assert not (runs / "tables" / "transfer.csv").exists()


def test_transfer_has_a_table_by_target_and_source(tmp_path):
    runs = tmp_path / "runs"
    for seed, accuracy in ((1, 40.0), (2, 50.0)):
        given = {name: {"accuracy_percent": accuracy} for name in ("dtd", "fgvc")}
        settings = {"dataset": "digits", "transfer": ["dtd", "fgvc"]}
        write_run(
            runs, f"s{seed}", seed=seed, accuracy_percent=80.0, settings=settings, transfer=given
        )
    # The same run without the transfer, and with another one.
    write_run(runs, "plain", accuracy_percent=80.0, settings={"dataset": "digits", "transfer": []})
    given = {"ucf101": {"accuracy_percent": 30.0}}
    settings = {"dataset": "digits", "transfer": ["ucf101"]}
    write_run(runs, "third", accuracy_percent=80.0, settings=settings, transfer=given)
    done = _table(runs)
    assert (done.code, done.err) == (0, "")
    (row,) = pd.read_csv(runs / "tables" / "accuracy.csv").to_dict("records")
    assert (row["dataset"], row["mean"], row["runs"]) == ("digits", 80.0, 2)
    lines = squeezed((runs / "tables" / "transfer.md").read_text()).splitlines()
    assert lines[2] == "| shots | method | Aircraft | DTD | UCF101 | average |"
    cell = "45.00 ± 7.07"
    assert lines[4] == f"| 4 | SO (from digits) | {cell} | {cell} | 30.00 (1) | 40.00 |"


@pytest.mark.slow
def test_it_needs_no_extras_and_prints_the_report_s_table(tmp_path):
    write_run(tmp_path, "a")
    code = (
        "import sys; from so_clip.__main__ import main; assert main() == 0;"
        "print({'torch', 'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    printed = python(code, "table", tmp_path)
    assert printed.endswith("\nset()\n")
    done = call("report", tmp_path, "--tables-only")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "report" / "tables" / "accuracy.md").read_text() in printed


def test_another_folder_gets_the_tables_and_they_are_rewritten(tmp_path):
    write_run(tmp_path / "runs", "a")
    for _ in range(2):  # the second call reads the same runs
        assert _table(tmp_path / "runs", "--out", tmp_path / "t").code == 0
    assert not (tmp_path / "runs" / "tables").exists()
    assert (tmp_path / "t" / "memory.csv").is_file()


def test_an_unwritable_folder_is_bad_input(tmp_path):
    write_run(tmp_path, "a")
    done = _table(tmp_path, "-o", "/proc/tables")
    assert done.code == 2
    assert "/proc/tables" in done.err
    assert "another folder with -o FOLDER" in done.err
    assert "Traceback" not in done.err
