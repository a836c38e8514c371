"""The benchmark of sampled gradients on a small matrix, and its table in the repository."""

import pandas as pd
import torch

from scripts import bench_sampled


def test_every_method_is_measured_against_the_dense_product():
    threads = torch.get_num_threads()
    rows = pd.DataFrame(bench_sampled.measure("small", (40, 30), 50, (1e-2, 0.2)))
    assert torch.get_num_threads() == threads
    assert [*rows["method"]] == ["dense", "columns", "gather", "csr", "rows", "csr", "rows"]
    assert [*rows["entries"]] == [1200, *[12] * 4, *[240] * 2]
    assert (rows["milliseconds"] > 0).all()
    assert rows["times_faster_than_dense"][0] == 1
    # The whole product is the fastest for so small a matrix; columns take less memory.
    assert [*rows["chosen"]] == ["", "if sampled_gradients=true", *[""] * 4, rows["chosen"][1]]
    assert bench_sampled.cpu().endswith("cores")


def test_the_table_of_convolutions_agrees_with_the_rule(monkeypatch):
    monkeypatch.setattr(bench_sampled, "CONVOLUTION_DENSITIES", (1e-3, 1e-2))
    small = pd.DataFrame(bench_sampled.measure_convolution("small", (16, 16, 3, 3), 1, 8))
    assert [*small["entries"]] == [2304, 2, 23]
    assert [*small["chosen"]] == ["", "yes", ""]
    table = pd.read_csv(bench_sampled.CONVOLUTION_TABLE)
    assert set(table["convolution"]) == set(bench_sampled.CONVOLUTIONS)
    # A chosen one is not slower than the dense gradient, apart from noise.
    assert (table[table["chosen"] == "yes"]["times_faster_than_dense"] > 0.9).all()


def test_the_table_in_the_repository_agrees_with_the_rule():
    table = pd.read_csv(bench_sampled.TABLE)
    assert table["hardware"].notna().all()
    for row in table[table["method"] != "dense"].itertuples():
        shape = (row.out_features, row.in_features)
        method, faster = bench_sampled.fastest(row.entries, shape, torch.device("cpu"))
        assert (row.method == method) == isinstance(row.chosen, str)
        if row.method == method:
            assert faster == (row.chosen == "yes")
            # auto's choice is not slower than the dense product, apart from noise.
            assert not faster or row.times_faster_than_dense > 0.9
