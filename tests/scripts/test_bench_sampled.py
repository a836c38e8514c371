"""The table that the rule of sampled gradients stands on, on a matrix small enough for a test."""

import pandas as pd
import torch

from scripts import bench_sampled


def test_every_way_is_measured_against_the_dense_one():
    threads = torch.get_num_threads()
    rows = pd.DataFrame(bench_sampled.measure("small", (40, 30), 50, (1e-2, 0.2)))
    assert torch.get_num_threads() == threads
    assert [*rows["method"]] == ["dense", "columns", "gather", "csr", "rows", "csr", "rows"]
    assert [*rows["entries"]] == [1200, *[12] * 4, *[240] * 2]
    assert (rows["milliseconds"] > 0).all()
    assert rows["times_faster_than_dense"][0] == 1
    # A product this small is soonest made whole; of 12 entries, the columns take less memory.
    assert [*rows["chosen"]] == ["", "if sampled_gradients=true", *[""] * 4, rows["chosen"][1]]
    assert bench_sampled.cpu().endswith("cores")


def test_the_table_in_the_repository_is_what_the_rule_says():
    table = pd.read_csv(bench_sampled.TABLE)
    assert table["hardware"].notna().all()
    for row in table[table["method"] != "dense"].itertuples():
        shape = (row.out_features, row.in_features)
        method, faster = bench_sampled.fastest(row.entries, shape, torch.device("cpu"))
        assert (row.method == method) == isinstance(row.chosen, str)
        if row.method == method:
            assert faster == (row.chosen == "yes")
            # What auto takes is no slower than the dense product, but for the noise of a machine.
            assert not faster or row.times_faster_than_dense > 0.9
