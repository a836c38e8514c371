"""Runs on sentences that are interrupted or meet a full disk, and their repetition."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.results.progress import Progress
from so_clip.run import Result
from so_clip.sentences.evaluate import SentenceEvaluator
from so_clip.system.commands import override
from tests.helpers.command import environment
from tests.helpers.sentence_runs import do_run, places

# 12 examples in batches of 4: an epoch ends after each third step.
LONG = [
    *("shots=12", "schedule.max_steps=24", "evaluation.every_steps=5"),
    *("checkpoint_seconds=1e-9", "threads=1"),
]
FILES = ("history.csv", "curve.csv", "changed.csv", "predictions.csv")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return places(tmp_path_factory.mktemp("interrupted"))


def contents(result: Result) -> list[bytes]:
    return [(result.folder / name).read_bytes() for name in FILES]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("method", "step"),
    [
        (["method=so", "optimizer.density_ratio=0.05", "optimizer.T=4"], 19),
        (["method=lora", "adapter.rank=2", "adapter.dropout=0.3"], 18),
    ],
    ids=["so in an epoch", "lora between two epochs"],
)
def test_a_run_that_is_interrupted_at_a_step_ends_as_an_undisturbed_one(
    method, step, options, tmp_path, monkeypatch
):
    whole = do_run([*options, *LONG, *method, override("results_dir", tmp_path / "whole")])
    words = [*options, *LONG, *method, override("results_dir", tmp_path / "cut")]
    original = Progress.after_step

    def interrupted(self: Progress, steps: int, loss: float | None) -> None:
        if steps > step:
            raise KeyboardInterrupt
        original(self, steps, loss)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do_run(words)
    taken = []
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "after_step", lambda self, steps, loss: taken.append(steps))
        again = do_run(words)
    assert taken == [*range(step + 1, 25)]
    assert contents(again) == contents(whole)


@pytest.mark.slow
def test_a_training_that_a_batch_has_stopped_is_not_continued(options, tmp_path, monkeypatch):
    words = [*options, *LONG, "method=adamw", "schedule.max_steps=60", "schedule.stop_loss=0.55"]
    whole = do_run([*words, override("results_dir", tmp_path / "whole")])
    assert whole.metrics["stop_reason"] == "stop_loss"
    words.append(override("results_dir", tmp_path / "cut"))
    original, steps = SentenceEvaluator.adapted, whole.metrics["steps"]

    def interrupted(self: SentenceEvaluator):
        if any(tmp_path.glob("cut/*/history.csv")):  # it is written after the training
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(SentenceEvaluator, "adapted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do_run(words)
    again = do_run(words)
    assert (again.metrics["steps"], again.metrics["stop_reason"]) == (steps, "stop_loss")
    assert contents(again) == contents(whole)


@pytest.mark.slow
def test_a_disk_that_refuses_the_model_leaves_no_part_of_it(options, tmp_path):
    words = [*options, "method=lora", "adapter.rank=2", "save=true"]
    words.append(override("results_dir", tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot (be )?writ.*results_dir=FOLDER"):
            do_run(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (folder,) = tmp_path.iterdir()
    assert not [path for path in folder.iterdir() if path.is_dir() or "partial" in path.name]
    assert json.loads((folder / "error.json").read_text())["kind"] == "CannotWrite"
    assert do_run(words).metrics["model_mib"] > 0


@pytest.mark.slow
def test_a_killed_run_on_sentences_ends_as_an_undisturbed_one(options, tmp_path: Path):
    words = [word for word in options if not word.startswith("results_dir")]
    words += [*LONG, "method=so", "optimizer.density_ratio=0.05", "optimizer.T=4", "save=true"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", tmp_path, "6", "rte", *words],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout).values()) >= 6
    first, *others = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert others
    for folder in others:
        for name in (*FILES, "model/model.safetensors"):
            assert (folder / name).read_bytes() == (first / name).read_bytes()
