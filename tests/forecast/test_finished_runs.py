"""The operations of finished runs, from the settings that they recorded."""

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.forecast.finished_runs import _settings

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
