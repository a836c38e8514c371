"""Progress of the report where stderr is no terminal; test_report has a terminal."""

from so_clip.report import progress
from tests.helpers.clock import Clock


def test_a_pipe_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    seen = []
    for item in progress.watched(iter(range(1500)), "runs", 1500):
        seen.append(item)
        clock.now += 1 / 128
    assert seen == list(range(1500))
    assert capsys.readouterr().err == "so_clip: runs: 1,280 of 1,500\n"


def test_short_work_prints_nothing(capsys):
    assert list(progress.watched("abc", "plots")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
