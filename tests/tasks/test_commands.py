"""What other commands say about a run of sampled tasks."""

import json
from pathlib import Path

import pytest
from PIL import Image

from so_clip.api.options import overrides_of
from so_clip.errors import InputError
from tests.helpers.command import call
from tests.helpers.report_runs import write_run

KEPT_NONE = "adapted a model for each of 600 sampled tasks, and kept none"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path, "run", tasks=600)
    (folder / "tasks.csv").write_text("task\n")
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate {run}", KEPT_NONE),
        ("predict {run} {image}", KEPT_NONE),
        ("export {run} --to open_clip {run}/out/model.safetensors", KEPT_NONE),
        ("rescore {run}", "has 600 sampled tasks, and keeps no logits of them"),
        ("forecast tasks=600", "Leave tasks out for an upper bound of their memory"),
    ],
)
def test_it_is_refused_in_one_sentence(command, message, run, tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    done = call(*command.format(run=run, image=image).split())
    assert (done.code, len(done.messages)) == (2, 1), done.err
    assert message in done.err


def test_status_says_how_many_tasks_there_are(run):
    done = call("status", run.parent)
    assert "mean over 600 tasks" in done.out


def test_a_python_call_names_the_command_line():
    for option in ({"tasks": 600}, {"episodes": {"ways": [5, 10]}}):
        with pytest.raises(InputError, match="a run of the command line"):
            overrides_of(option)


@pytest.mark.slow
def test_a_recorded_run_is_repeated_by_from(tmp_path):
    words = ("dataset=digits", "method=zero_shot", "tasks=2", "shots=1", "episodes.ways=[2,3]")
    place = (f"results_dir={tmp_path / 'runs'}", "evaluation.workers=0")
    first = call(*words, *place)
    assert first.code == 0, first.err
    (folder,) = (tmp_path / "runs").glob("digits-*")
    again = call("--from", folder)
    assert "finished before: skipped" in again.out
    assert "means over 2 tasks with 95 % intervals" in again.out
    other = call("--from", folder, "seed=2")
    assert other.code == 0, other.err
    seeds = {json.loads(file.read_text())["seed"] for file in folder.parent.glob("*/metrics.json")}
    assert seeds == {1, 2}
