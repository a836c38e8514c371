"""A pipe or a device in place of a run's file: it is reported at once, and is never read."""

import os

import pytest

from so_clip.checkpoint import Checkpoint, Stopwatch
from so_clip.errors import InputError
from so_clip.results.job_files import SWEEP_FILE, read_job, read_plan
from so_clip.results.run_files import METRICS_FILE, finished_metrics, read_columns
from so_clip.status.runs import FAILED, read_states


@pytest.fixture(params=["pipe", "device"])
def put(request):
    """Return a function that puts a pipe, or a link to an endless device, at a path."""

    def at(path):
        os.mkfifo(path) if request.param == "pipe" else path.symlink_to("/dev/zero")
        return path

    return at


def test_run_files_that_are_no_plain_files_are_refused(put, tmp_path):
    put(tmp_path / METRICS_FILE)
    with pytest.raises(InputError, match=r"metrics\.json cannot be read: it is not a plain file"):
        finished_metrics(tmp_path)
    with pytest.raises(InputError, match=r"history\.csv cannot be read: it is not a plain file"):
        read_columns(put(tmp_path / "history.csv"))
    assert read_states(tmp_path, [])[str(tmp_path)].state == FAILED


def test_sweep_files_that_are_no_plain_files_count_as_torn(put, tmp_path):
    assert read_job(put(tmp_path / "0.json")) is None
    put(tmp_path / SWEEP_FILE)
    assert read_plan(tmp_path) is None


def test_a_checkpoint_that_is_no_plain_file_is_ignored(put, tmp_path, capsys):
    path = put(tmp_path / "checkpoint.pt")
    Checkpoint(path, "fingerprint", 1.0, Stopwatch()).restore()
    assert "checkpoint.pt is ignored: it cannot be read" in capsys.readouterr().err
