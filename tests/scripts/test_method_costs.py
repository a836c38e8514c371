"""The table of forecast costs: complete, and the same when a row is made again."""

import pandas as pd
import pytest

from scripts import method_costs as script
from so_clip.backbones.methods import method_names


def test_the_table_has_every_method_once_with_numbers_or_a_reason():
    table = pd.read_csv(script.TABLE)
    assert [*table.columns] == [*script.COLUMNS]
    assert [*table["method"]] == method_names()
    refused = table["reason"].notna()
    assert {*table["method"][refused]} == {"smat", "smat_clip_lora", "smat_masks"}
    numbers = table[~refused]
    assert (numbers["peak_memory_mib"] > numbers["weights_mib"]).all()
    trained = numbers[numbers["steps"] > 0]
    assert (trained["step_tflop"] > 0).all()
    assert (trained["trained_parameters"] > 0).all()


@pytest.mark.slow
def test_a_row_is_remade(tmp_path):
    out = tmp_path / "costs.csv"
    out.write_bytes(script.TABLE.read_bytes())
    script.main(["--methods", "taskres", "--out", str(out)])
    made, kept = pd.read_csv(out), pd.read_csv(script.TABLE)
    numbers = [name for name in script.COLUMNS if name not in script.MADE_BY]
    pd.testing.assert_frame_equal(made[numbers], kept[numbers])
