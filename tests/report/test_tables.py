"""Tables from made runs: the order of rows and columns, means, marks and notes."""

import math
from pathlib import Path

import pytest

from so_clip.report.read import read_runs
from so_clip.report.table import Row, Table
from so_clip.report.tables import make_tables
from tests.helpers.report_runs import PAPER, VIT, write_grid, write_provenance, write_run


def _tables(root: Path) -> dict[str, Table]:
    return {table.name: table for table in make_tables(read_runs(root))}


def _accuracy(root: Path) -> Table:
    (table,) = (table for table in make_tables(read_runs(root)) if table.measure.name == "accuracy")
    return table


def _row(table: Table, label: str, shots: int = 4) -> Row:
    (row,) = (
        row
        for block in table.blocks
        for row in block.rows
        if row.label == label and block.shots == shots
    )
    return row


def test_datasets_have_the_papers_order_and_others_follow(tmp_path):
    for dataset in ("digits", *reversed(PAPER), "aaa"):
        write_run(tmp_path, dataset, dataset=dataset)
    table = _accuracy(tmp_path)
    assert table.datasets == [*PAPER, "aaa", "digits"]
    assert [column.title for column in table.columns][:4] == [
        "ImageNet",
        "SUN397",
        "Aircraft",
        "EuroSAT",
    ]
    assert [column.key for column in table.columns[-2:]] == ["average", "peak_memory_mib"]


def test_shots_are_blocks_and_methods_rows(tmp_path):
    for shots in (16, 1, 4):
        write_grid(tmp_path, shots=shots)
    write_run(tmp_path, "z", method="zero_shot", method_title="Zero-shot CLIP", shots=0, seed=0)
    table = _accuracy(tmp_path)
    assert [block.shots for block in table.blocks] == [0, 1, 4, 16]
    assert [block.title for block in table.blocks] == ["zero-shot", "1 shot", "4 shots", "16 shots"]
    assert [row.label for row in table.blocks[1].rows] == ["CLIP-LoRA", "SO"]
    assert [row.label for row in table.blocks[0].rows] == ["Zero-shot CLIP"]


def test_the_average_is_over_datasets_and_its_deviation_over_seeds(tmp_path):
    for dataset, accuracies in (("dtd", (10.0, 30.0)), ("eurosat", (50.0, 90.0))):
        for seed, accuracy in enumerate(accuracies):
            write_run(
                tmp_path, f"{dataset}{seed}", dataset=dataset, seed=seed, accuracy_percent=accuracy
            )
    cell = _row(_accuracy(tmp_path), "SO").cells["average"]
    assert cell.mean == pytest.approx(45.0)
    assert cell.std == pytest.approx(30 / 2**0.5)  # of (10 + 50) / 2 and (30 + 90) / 2
    assert cell.runs == 2


def test_a_row_without_all_datasets_has_no_average_and_no_costs(tmp_path):
    folders = write_grid(tmp_path, train_seconds=3.0)
    for seed in (1, 2, 3):
        (folders["so", "dtd", seed] / "metrics.json").unlink()
    table = _accuracy(tmp_path)
    assert set(_row(table, "SO").cells) == {"eurosat"}
    costs = {"peak_memory_mib", "train_seconds"}
    assert set(_row(table, "CLIP-LoRA").cells) == {"dtd", "eurosat", "average"} | costs


def test_an_average_of_uneven_seeds_has_no_deviation(tmp_path):
    folders = write_grid(tmp_path, methods=("so",))
    (folders["so", "dtd", 3] / "metrics.json").unlink()
    cell = _row(_accuracy(tmp_path), "SO").cells["average"]
    assert cell.mean == pytest.approx((50.25 + 51 + 1.4 / 3) / 2)
    assert math.isnan(cell.std)


def test_one_dataset_has_no_average(tmp_path):
    write_run(tmp_path, "a")
    table = _accuracy(tmp_path)
    assert [column.key for column in table.columns] == ["digits", "peak_memory_mib"]


def test_the_best_of_each_block_and_column_is_marked(tmp_path):
    write_grid(tmp_path, methods=("so", "clip_lora"), train_seconds=2.0)
    table = _accuracy(tmp_path)
    best = {key for key, cell in _row(table, "CLIP-LoRA").cells.items() if cell.best}
    assert best == {"dtd", "eurosat", "average"}  # costs are all the same
    assert not any(cell.best for cell in _row(table, "SO").cells.values())


def test_cells_that_show_the_same_number_are_all_best_and_low_costs_are_best(tmp_path):
    for name, accuracy, memory in (("so", 50.001, 9), ("adamw", 50.004, 12), ("sgd", 40, 15)):
        write_run(
            tmp_path,
            name,
            method=name,
            method_title=name,
            accuracy_percent=accuracy,
            peak_memory_mib=memory,
            expected_calibration_error_percent=memory,
        )
    tables = _tables(tmp_path)

    def best(table: str, key: str) -> list[str]:
        (block,) = tables[table].blocks
        return [row.title for row in block.rows if row.cells[key].best]

    assert best("accuracy_tiny", "digits") == ["adamw", "so"]
    assert best("accuracy_tiny", "peak_memory_mib") == ["so"]
    assert best("memory_tiny", "digits") == ["so"]
    assert best("calibration_tiny", "digits") == ["so"]


def test_rows_with_uneven_shots_are_named_and_never_best(tmp_path):
    for name, accuracy, alpha in (("so", 50.0, None), ("adamw", 40.0, None), ("so", 60.0, 0.5)):
        write_run(
            tmp_path,
            f"{name}{alpha}",
            method=name,
            method_title=name.upper(),
            accuracy_percent=accuracy,
            imbalance=alpha,
        )
    table = _accuracy(tmp_path)
    best = {row.label: row.cells["digits"].best for row in table.blocks[0].rows}
    assert best == {"ADAMW": False, "SO": True, "SO (imbalance=0.5)": False}
    assert any("uneven shots" in note for note in table.notes)


def test_each_backbone_has_a_table(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", backbone=VIT)
    assert {"accuracy_tiny", "accuracy_vit-b-16-quickgelu"} <= set(_tables(tmp_path))


def test_zero_shot_is_a_row_even_without_a_run_of_its_own(tmp_path):
    write_grid(tmp_path, zero_shot_accuracy_percent=33.0)
    table = _accuracy(tmp_path)
    cells = _row(table, "Zero-shot CLIP", shots=0).cells
    assert {key: cell.mean for key, cell in cells.items()} == {
        "dtd": 33.0,
        "eurosat": 33.0,
        "average": 33.0,
    }
    assert any("before they adapted" in note for note in table.notes)


def test_zero_shot_values_that_differ_are_not_shown(tmp_path):
    for seed, before in ((1, 33.0), (2, 34.0)):
        write_run(tmp_path, f"s{seed}", seed=seed, zero_shot_accuracy_percent=before)
    assert [block.shots for block in _accuracy(tmp_path).blocks] == [4]


def test_runs_of_zero_shot_clip_are_preferred(tmp_path):
    write_run(tmp_path, "a", zero_shot_accuracy_percent=33.0)
    write_run(
        tmp_path,
        "z",
        method="zero_shot",
        method_title="Zero-shot CLIP",
        shots=0,
        seed=0,
        accuracy_percent=32.0,
    )
    table = _accuracy(tmp_path)
    assert _row(table, "Zero-shot CLIP", shots=0).cells["digits"].mean == 32.0
    assert table.notes == ()


def test_flops_are_a_column_only_if_runs_recorded_them(tmp_path):
    write_run(tmp_path, "a", train_flops=3.5e12, train_seconds=2.0)
    write_run(tmp_path, "b", method="sgd", method_title="SGD")
    table = _accuracy(tmp_path)
    assert [column.title for column in table.columns] == [
        "digits",
        "memory (MiB)",
        "training (s)",
        "training (TFLOP)",
    ]
    assert _row(table, "SO").cells["train_tflops"].mean == pytest.approx(3.5)
    assert "train_tflops" not in _row(table, "SGD").cells
    assert "flops_tiny" in _tables(tmp_path)


def test_base_to_new_has_three_tables_of_its_own(tmp_path):
    scores = {
        "base_accuracy_percent": 70.0,
        "new_accuracy_percent": 60.0,
        "harmonic_mean_percent": 64.6,
    }
    write_run(tmp_path, "a", protocol="base_to_new", accuracy_percent=70.0, **scores)
    tables = _tables(tmp_path)
    assert {"base_accuracy_tiny", "new_accuracy_tiny", "harmonic_mean_tiny"} <= set(tables)
    assert "accuracy_tiny" not in tables
    assert _row(tables["harmonic_mean_tiny"], "SO").cells["digits"].mean == 64.6
    assert _row(tables["memory_tiny"], "SO (protocol=base_to_new)").cells["digits"].mean == 10.0
    write_run(tmp_path, "b", accuracy_percent=55.0)
    (block,) = _tables(tmp_path)["accuracy_tiny"].blocks
    assert [row.cells["digits"].mean for row in block.rows] == [55.0]


def test_transfers_have_a_table_by_dataset(tmp_path):
    given = {name: {"accuracy_percent": at} for name, at in (("dtd", 40.0), ("imagenet", 30.0))}
    write_run(tmp_path, "a", transfer=given)
    table = _tables(tmp_path)["transfer_tiny"]
    assert table.datasets == ["imagenet", "dtd"]
    assert _row(table, "SO (from digits)").cells["average"].mean == 35.0


def test_variants_are_sorted_by_their_numbers(tmp_path):
    for at, density in enumerate((1e-2, 5e-5, 1e-3, 0.5)):
        write_run(tmp_path, str(at), optimizer__density_ratio=density)
    (block,) = _accuracy(tmp_path).blocks
    assert [row.variant.partition("=")[2] for row in block.rows] == [
        "5e-05",
        "0.001",
        "0.01",
        "0.5",
    ]


def test_differences_in_versions_and_hardware_are_noted(tmp_path):
    write_provenance(write_run(tmp_path, "a"))
    versions = {"torch": "2.13.0"}
    hardware = {"device": "NVIDIA H100", "processor": "some processor"}
    write_provenance(
        write_run(tmp_path, "b", seed=2),
        versions=versions,
        hardware=hardware,
        commit="c" * 40 + "-dirty",
    )
    write_run(tmp_path, "c", seed=3)
    notes = " ".join(_accuracy(tmp_path).notes)
    assert "3 versions of torch" in notes
    assert all(text in notes for text in ("2.14.1 (1)", "2.13.0 (1)", "unknown (1)"))
    assert "3 kinds of hardware" in notes
    assert "NVIDIA H100, some processor (1)" in notes
    assert "cccccccccccc-dirty (1)" in notes
    assert "1 of 3 runs used code with uncommitted changes" in notes


def test_seconds_under_different_conditions_are_noted_and_never_best(tmp_path):
    for name, threads, seconds in (("so", 1, 8.0), ("adamw", 4, 3.0)):
        folder = write_run(
            tmp_path,
            name,
            method=name,
            method_title=name,
            accuracy_percent=seconds,
            train_seconds=seconds,
        )
        hardware = {"device": "cpu", "processor": "some processor", "torch_threads": threads}
        write_provenance(folder, hardware=hardware)
    tables = _tables(tmp_path)
    for name, key in (("accuracy_tiny", "train_seconds"), ("seconds_tiny", "digits")):
        table = tables[name]
        assert not any(row.cells[key].best for row in table.blocks[0].rows)
        (note,) = table.notes
        assert note.startswith("Training seconds were measured with different threads (1, 4)")
    assert _row(tables["accuracy_tiny"], "so").cells["digits"].best
    assert tables["memory_tiny"].notes == ()


def test_skipped_images_are_noted_and_skipped_test_images_make_a_row(tmp_path):
    for seed, train, test in ((1, 0, 0), (2, 3, 0), (3, 3, 2)):
        counts = {"skipped_train_images": train, "skipped_test_images": test}
        write_run(tmp_path, f"s{seed}", seed=seed, **counts)
    table = _accuracy(tmp_path)
    (block,) = table.blocks
    assert {row.variant: row.cells["digits"].runs for row in block.rows} == {
        "": 2,
        "skipped_test_images=2": 1,
    }
    assert table.notes == (
        "2 of 3 runs skipped corrupt images, up to 3 training images and 2 test images: see "
        "skipped.csv in their folders.",
    )


def test_equal_versions_and_hardware_have_no_note(tmp_path):
    for seed in (1, 2):
        write_provenance(write_run(tmp_path, str(seed), seed=seed))
    assert _accuracy(tmp_path).notes == ()
