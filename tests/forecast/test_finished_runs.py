"""The operations of finished runs, from the settings that they recorded."""

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.forecast.finished_runs import SENTENCES_REMARK, _settings, forecast_flops
from so_clip.report.read import read_runs
from so_clip.report.tables import make_tables
from tests.helpers.sentence_folders import write_sentence_run

# Options that runs of results version 2 do not have.
NEW = ("cards_dir", "rank_timeout_seconds", "graph")
NEW_IN_SCHEDULE = ("drop_last", "crops")


def test_a_run_without_newer_options_has_their_defaults():
    settings = from_config(compose(["experiment=demo", "schedule.max_steps=7"]))
    record = settings.record()
    for name in NEW:
        del record[name]
    for name in NEW_IN_SCHEDULE:
        del record["schedule"][name]
    assert _settings(record, steps=7) == settings


def test_runs_on_sentences_have_no_flops_and_one_remark(tmp_path):
    for seed in (1, 2):
        write_sentence_run(tmp_path, seed=seed)
    runs, remarks = forecast_flops(read_runs(tmp_path))
    assert remarks == [SENTENCES_REMARK]
    assert runs.frame["train_flops"].isna().all()
    tables = make_tables(runs)
    assert not any(column.key == "train_tflops" for table in tables for column in table.columns)
    assert not any("FLOP" in note for table in tables for note in table.notes)
