"""The benchmark of adapter files on the tiny backbone, and its table in the repository."""

import pandas as pd
import pytest

from scripts import bench_adapters


@pytest.mark.slow
def test_files_of_several_lengths_are_measured(tmp_path):
    bench_adapters.main(["--quick", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "adapters_cpu.csv")
    assert [*table["steps"]] == [20, 40]
    assert (table["moved_share_of_draws"].between(0.3, 1)).all()
    assert (table.filter(like="seconds") > 0).all(axis=None)
    assert (table["file_mib"] < table["checkpoint_mib"] / 10).all()


def test_the_table_in_the_repository_is_of_a_real_size():
    table = pd.read_csv(bench_adapters.TABLES / "adapters_cpu.csv")
    assert [*table["steps"]] == [500, 1000, 2000]
    assert (table["matrix_entries"] == 122_683_392).all()
    assert not table["command"].str.contains("quick").any()
    # A moved entry takes four bytes and one or two for its place.
    bytes_per_entry = table["file_mib"] * 2**20 / table["moved_entries"]
    assert (bytes_per_entry < 6.5).all()
    assert (table["first_apply_seconds"] < 1).all()
