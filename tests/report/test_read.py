"""Reading runs: their columns, the reasons for left-out folders, and variants."""

import json
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.report.read import read_runs, transfers
from so_clip.report.tables import make_tables
from so_clip.system.locks import lock_folder, unlock
from so_clip.version import RESULTS_VERSION
from tests.helpers.command import python
from tests.helpers.report_runs import write_provenance, write_run


def _variants(root: Path) -> list[str]:
    return list(read_runs(root).frame["variant"])


def test_a_run_has_metrics_folder_and_provenance(tmp_path):
    folder = write_run(tmp_path / "deep", "a", accuracy_percent=61.5, final_loss=None)
    write_provenance(folder, results_version=RESULTS_VERSION)
    runs = read_runs(tmp_path)
    assert (runs.results_dir, runs.skipped) == (tmp_path, [])
    (row,) = runs.frame.to_dict("records")
    assert (row["accuracy_percent"], row["folder"]) == (61.5, str(folder))
    assert (row["torch"], row["commit"], row["weights_sha256"]) == ("2.14.1", "a" * 40, "b" * 64)
    assert row["hardware"] == "cpu, some processor"
    assert row["results_version"] == RESULTS_VERSION
    assert row["settings"]["optimizer"] == {"lr": 2e-4, "density_ratio": 5e-4, "seed": 1}
    assert row["variant"] == ""


@pytest.mark.parametrize("text", ["", "[]", '{"versions": 3, "results_version": "x"}', "\x00"])
def test_a_damaged_provenance_is_ignored(tmp_path, text):
    (write_run(tmp_path, "a") / "provenance.json").write_text(text)
    (row,) = read_runs(tmp_path).frame.to_dict("records")
    assert (row["torch"], row["results_version"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accuracy_percent": float("nan")}, "accuracy_percent is nan"),
        ({"accuracy_percent": 10**400}, "accuracy_percent is 1000"),
        ({"accuracy_percent": True}, "accuracy_percent is True"),
        ({"peak_memory_mib": -1}, "peak_memory_mib is -1"),
        ({"shots": 4.5}, "shots is 4.5"),
        ({"train_seconds": "long"}, "train_seconds is 'long'"),
        ({"zero_shot_accuracy_percent": [1]}, "zero_shot_accuracy_percent is [1]"),
        ({"transfer": {"dtd": 3}}, "transfer is {'dtd': 3}"),
        ({"transfer": ["dtd"]}, "transfer is ['dtd']"),
    ],
)
def test_a_run_with_an_invalid_value_is_left_out_and_named(tmp_path, changes, reason):
    write_run(tmp_path, "good")
    bad = write_run(tmp_path, "bad", seed=2, **changes)
    runs = read_runs(tmp_path)
    assert list(runs.frame["seed"]) == [1]
    (line,) = runs.skipped
    assert line.startswith(f"{bad / 'metrics.json'}: {reason}")
    assert "\n" not in line


def test_one_torn_file_does_not_affect_other_runs(tmp_path):
    for seed in range(50):
        write_run(tmp_path, f"s{seed}", seed=seed)
    torn = tmp_path / "s27" / "metrics.json"
    torn.write_bytes(torn.read_bytes()[:300] + b"\xff\x00")
    runs = read_runs(tmp_path)
    assert sorted(runs.frame["seed"]) == [seed for seed in range(50) if seed != 27]
    assert [line.partition(" ")[0] for line in runs.skipped] == [str(torn)]


def test_a_failed_run_is_listed_with_its_error(tmp_path):
    write_run(tmp_path, "good")
    failed = tmp_path / "failed"
    failed.mkdir()
    error = {"kind": "TrainingDiverged", "message": "the loss is nan\nat step 3", "exit_code": 1}
    (failed / "error.json").write_text(json.dumps(error))
    assert read_runs(tmp_path).skipped == [
        f"{failed}: failed with TrainingDiverged: the loss is nan"
    ]


def test_the_newest_of_equal_runs_counts(tmp_path):
    for name, hour, accuracy in (("a", 9, 10.0), ("b", 11, 20.0), ("c", 10, 30.0)):
        folder = write_run(tmp_path, name, accuracy_percent=accuracy)
        write_provenance(folder, finished_at=f"2026-11-22T{hour:02d}:00:00+00:00")
    runs = read_runs(tmp_path)
    assert list(runs.frame["accuracy_percent"]) == [20.0]
    assert runs.skipped == [f"{tmp_path / name}: repeats another run." for name in ("a", "c")]


def test_different_weights_with_one_name_are_never_averaged(tmp_path):
    for seed, sha256 in ((1, "c" * 64), (2, "d" * 64)):
        folder = write_run(tmp_path, f"s{seed}", seed=seed)
        write_provenance(folder, backbone_weights_sha256=sha256)
    assert _variants(tmp_path) == ["weights=cccccccc", "weights=dddddddd"]


def test_an_old_run_without_a_checksum_has_the_same_weights(tmp_path):
    write_provenance(write_run(tmp_path, "new"))
    write_run(tmp_path, "old", seed=2)
    assert _variants(tmp_path) == ["", ""]


def test_two_methods_with_one_title_are_different_rows(tmp_path):
    write_run(tmp_path, "a", method="so")
    write_run(tmp_path, "b", method="other")
    assert _variants(tmp_path) == ["method=so", "method=other"]


def test_a_setting_that_follows_from_the_dataset_is_not_named(tmp_path):
    """For example the steps of a fixed number of epochs: they make one row."""
    for dataset, steps in (("dtd", 225), ("eurosat", 48)):
        write_run(tmp_path, dataset, dataset=dataset, schedule__max_steps=steps)
    assert _variants(tmp_path) == ["", ""]
    write_run(tmp_path, "longer", dataset="dtd", schedule__max_steps=450, seed=2)
    assert _variants(tmp_path) == [f"schedule.max_steps={steps}" for steps in (225, 48, 450)]


def test_weights_are_compared_across_datasets(tmp_path):
    for dataset, pretrained in (("dtd", "openai"), ("eurosat", "laion400m")):
        write_run(tmp_path, dataset, dataset=dataset, backbone__pretrained=pretrained)
    assert _variants(tmp_path) == [
        "backbone.pretrained=openai",
        "backbone.pretrained=laion400m",
    ]


def test_the_number_of_processes_is_named(tmp_path):
    write_run(tmp_path, "a")  # an old run, without the number
    for processes in (1, 2):
        write_run(tmp_path, f"p{processes}", seed=processes + 1, processes=processes)
    write_run(tmp_path, "q", seed=2, processes=2)  # does not repeat the run with one process
    runs = read_runs(tmp_path)
    assert list(runs.frame["variant"]) == ["", "", "processes=2", "processes=2"]
    assert runs.skipped == []


def test_runs_tested_on_training_images_are_left_out(tmp_path):
    write_run(tmp_path, "a", tested_on="test")
    write_run(tmp_path, "old", seed=2)
    for seed in (1, 2, 3):
        write_run(tmp_path / "rates", f"s{seed}", seed=seed, tested_on="training")
    runs = read_runs(tmp_path)
    assert list(runs.frame["seed"]) == [1, 2]
    assert runs.skipped == [
        f"{tmp_path / 'rates'}: 3 runs not tested on test images but on others (training)."
    ]
    with pytest.raises(
        InputError, match=r"no finished run in it.*3 runs not tested on test images"
    ):
        read_runs(tmp_path / "rates")


def test_each_transfer_is_a_row(tmp_path):
    given = {"dtd": {"accuracy_percent": 40.0, "zero_shot_accuracy_percent": 35.0}}
    write_run(tmp_path, "a", transfer=given)
    (row,) = transfers(read_runs(tmp_path).frame).to_dict("records")
    assert (row["dataset"], row["variant"]) == ("dtd", "from digits")
    assert (row["accuracy_percent"], row["zero_shot_accuracy_percent"]) == (40.0, 35.0)
    assert transfers(read_runs(tmp_path).frame.drop(columns="transfer")).empty


def test_links_are_not_followed(tmp_path):
    write_run(tmp_path / "elsewhere", "a")
    write_run(tmp_path / "runs", "b", seed=2)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert list(read_runs(tmp_path / "runs").frame["seed"]) == [2]


def test_a_folder_without_finished_runs_is_an_error_with_the_reasons(tmp_path):
    (write_run(tmp_path, "a") / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"no finished run in it.*unfinished"):
        read_runs(tmp_path)


def test_a_running_run_is_not_called_unfinished(tmp_path):
    folder = write_run(tmp_path, "a")
    (folder / "metrics.json").unlink()
    lock = lock_folder(folder)
    with pytest.raises(InputError, match=r"no finished run in it.*still running"):
        read_runs(tmp_path)
    unlock(lock)


@pytest.mark.slow
def test_reading_and_tables_need_no_torch(tmp_path):
    write_run(tmp_path, "a")
    code = (
        "import sys; from pathlib import Path;"
        "from so_clip.report.read import read_runs; from so_clip.report.tables import make_tables;"
        "make_tables(read_runs(Path(sys.argv[1])));"
        "print({'torch', 'scipy', 'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    assert python(code, tmp_path).strip() == "set()"


@pytest.mark.parametrize("choice", ["_target_", "name"])
def test_runs_with_and_without_target_paths_are_read(tmp_path, choice):
    """Older runs record an adapter's path as `_target_`, newer runs its name."""
    for at, adapter in enumerate(("so_clip.methods.coop.CoOp", "so_clip.methods.taskres.TaskRes")):
        value = adapter if choice == "_target_" else adapter.rpartition(".")[2].lower()
        write_run(tmp_path, f"{at}", seed=at, adapter={choice: value, "seed": at, "tokens": at})
    names = ["CoOp", "TaskRes"] if choice == "_target_" else ["coop", "taskres"]
    assert _variants(tmp_path) == [f"adapter={name}" for name in names]


@pytest.mark.parametrize("group", ["own", "user_data"])
def test_the_place_of_user_data_is_not_named_but_its_class_names_are(tmp_path, group):
    for seed, names in ((1, "a.txt"), (2, "a.txt"), (3, "b.txt")):
        options = {"layout": "folder", "folder": f"/data/{seed}", "class_names": names}
        folder = write_run(tmp_path, f"{seed}", seed=seed)
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["settings"][group] = options
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert _variants(tmp_path) == [f"dataset.class_names={name}.txt" for name in "aab"]


def test_runs_of_an_older_results_version_are_separate_rows(tmp_path):
    """Their settings have another format, which must not show up as a difference."""
    old = {"adapter": {"_target_": "so_clip.methods.coop.CoOp", "tokens": 4}}
    new = {"adapter": {"name": "coop", "context": 4}}
    for seed in (1, 2):
        for name, settings, version in (
            ("old", old, RESULTS_VERSION - 1),
            ("new", new, RESULTS_VERSION),
        ):
            folder = write_run(tmp_path, f"{seed}{name}", seed=seed, **settings)
            write_provenance(folder, results_version=version)
    older = f"results_version={RESULTS_VERSION - 1}"
    assert _variants(tmp_path) == ["", older, "", older]
    (table,) = (
        table for table in make_tables(read_runs(tmp_path)) if table.measure.name == "accuracy"
    )
    assert any("2 of 4 runs are of an older results version" in note for note in table.notes)


def test_runs_with_invalid_unicode_are_left_out(tmp_path, capsys):
    write_run(tmp_path, "a")
    write_run(tmp_path, "in the name \udcff", seed=2)
    write_run(tmp_path, "in a title", method_title="SO \ud800", seed=3)
    (write_run(tmp_path, "failed", seed=4) / "metrics.json").unlink()
    (tmp_path / "failed" / "error.json").write_text(json.dumps({"message": "\udc80"}))
    runs = read_runs(tmp_path)
    assert len(runs.frame) == 1
    print("\n".join(runs.skipped).encode().decode())
    assert capsys.readouterr().out.count("no valid Unicode") == 2
    assert len(runs.skipped) == 3
