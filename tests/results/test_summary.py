"""The printed table of a run."""

import json

from so_clip.results.summary import summary_rows, summary_table
from tests.helpers.sentence_folders import write_sentence_run


def _rows(folder):
    return summary_rows(json.loads((folder / "metrics.json").read_text()))


def test_a_run_on_sentences_has_its_interval_and_the_largest_class(tmp_path):
    rows = _rows(write_sentence_run(tmp_path, right=158))
    assert rows == {
        "accuracy": "57.04 %, 95 % interval 51.2 to 62.7 %",
        "largest class": "52.71 % of 277",
    }


def test_cut_sentences_are_counted(tmp_path):
    rows = _rows(write_sentence_run(tmp_path, truncated_train=0, truncated_test=4))
    assert rows["cut to max_length"] == "4 test examples"


def test_the_summary_has_two_aligned_columns():
    text = summary_table({"accuracy": "50 %", "peak memory": "1 MiB"})
    assert text.splitlines() == ["accuracy     50 %", "peak memory  1 MiB"]
