"""The benchmark of test images runs, and the table in the repository is complete."""

import pandas as pd
import pytest

from scripts import bench_decode
from scripts.bench_decode import DECODED, ENCODED, FETCHED, FETCHED_ENCODED, KEPT, LOOKED_UP

WAYS = [LOOKED_UP, DECODED, KEPT, FETCHED, ENCODED, FETCHED_ENCODED]


@pytest.mark.slow
def test_every_way_is_timed_in_turns(tmp_path, capsys):
    bench_decode.main(["--quick", "--workers", "1", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "decode_cache_cpu.csv")
    assert [*table["way"]] == WAYS
    assert set(table["backbone"]) == {"tiny"}
    assert (table["images_per_processor_second"] > 0).all()
    assert table["times_less_than_decoding"][1] == table["times_less_than_decoding"][4] == 1
    assert (table[["seconds", "processor_seconds"]] > 0).all(axis=None)
    assert table["command"][0] == "python scripts/bench_decode.py --quick"
    assert "from the cache, encoded" in capsys.readouterr().out


def test_the_table_in_the_repository_is_complete_and_has_images_of_a_real_size():
    table = pd.read_csv(bench_decode.TABLES / "decode_cache_cpu.csv")
    assert [*table["way"]] == WAYS * len(bench_decode.FULL.towers)
    assert table["hardware"].notna().all()
    assert (table["images"] >= 16).all()
    assert table["jpeg_kilobytes"].between(60, 200).all()  # ImageNet's take 110
    assert not table["command"].str.contains("quick").any()
    # The cache saves decoding.
    fetched = table[table["way"] == FETCHED]
    assert (fetched["times_less_than_decoding"] > 2).all()
