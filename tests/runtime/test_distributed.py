"""Two processes under torchrun train as a single process does."""

import csv
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from so_clip.build import build_model, few_shot_batches
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.run_data import gather
from so_clip.errors import InputError
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from so_clip.runtime.distributed import Ranks
from so_clip.system.commands import command
from tests.helpers.command import Outcome, call, environment, spawn
from tests.helpers.made_datasets import write_eurosat

STEPS = 15
HOST = platform.node()
METHODS = {
    "so": ("method=so", "optimizer.density_ratio=0.02", "optimizer.sampled_gradients=true"),
    "clip_lora": ("method=clip_lora", "adapter.dropout=0"),
}
ENDLESS = (*METHODS["so"], "schedule.max_steps=100000")


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Start a command line under torchrun, in two processes."""
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2"
    return subprocess.Popen(
        [*torchrun.split(), "-m", "so_clip", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def run_pair(*arguments: object) -> Outcome:
    """Run a command line under torchrun, in two processes, and wait for it."""
    with start(*arguments) as running:
        out, err = running.communicate(timeout=600)
    return Outcome(running.returncode, out, err)


def _options(tmp_path: Path, data_root: Path) -> list[str]:
    # 20 images in batches of 8: the last batch of an epoch has 4.
    return [
        f"results_dir={tmp_path}",
        f"data_root={data_root}",
        f"schedule.max_steps={STEPS}",
        "dataset=eurosat",
        "shots=4",
        "schedule.batch_size=8",
        "schedule.stop_loss=0",
        "device=cpu",
        "evaluation.workers=0",
        "threads=1",
    ]


def _read(results: Path) -> tuple[dict[str, Any], list[float], list[list[str]]]:
    """Return the metrics, the losses and the predictions of the one run in a folder."""
    (folder,) = results.glob("eurosat-*")
    tables = []
    for name in ("history.csv", "predictions.csv"):
        with (folder / name).open(newline="") as file:
            tables.append([*csv.DictReader(file)])
    losses = [float(row["loss"]) for row in tables[0]]
    predicted = [[row["path"], row["prediction"]] for row in tables[1]]
    return json.loads((folder / "metrics.json").read_text()), losses, predicted


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_eurosat(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(method, data_root, tmp_path):
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    done = spawn(*_options(alone, data_root), *METHODS[method])
    assert done.code == 0, done.err
    done = run_pair(*_options(pair, data_root), *METHODS[method])
    assert done.code == 0, done.err
    assert done.out.count("adapted accuracy") == 1
    metrics, losses, predicted = _read(alone)
    shared_metrics, shared_losses, shared_predicted = _read(pair)
    assert shared_losses == pytest.approx(losses, abs=1e-5)
    assert len(losses) == STEPS
    assert shared_predicted == predicted
    for key in ("accuracy_percent", "zero_shot_accuracy_percent", "steps", "final_loss"):
        assert shared_metrics[key] == pytest.approx(metrics[key], abs=1e-5)
    assert (metrics["processes"], shared_metrics["processes"]) == (1, 2)
    assert shared_metrics["activations_mib"] < metrics["activations_mib"]
    assert shared_metrics["run_fingerprint"] != metrics["run_fingerprint"]
    if method == "so":
        again = run_pair(*_options(pair, data_root), *METHODS[method])
        assert again.code == 0, again.err
        assert "finished before" in again.out


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 4, 7])
def test_the_average_of_the_shards_is_the_mean_of_the_batch(size, images):
    draw = torch.Generator().manual_seed(0)
    losses_B = torch.rand(images, generator=draw, dtype=torch.float64)
    images_BCHW = torch.arange(images).view(-1, 1, 1, 1)
    seen, means = [], []
    for rank in range(size):
        ranks = Ranks(rank, size)
        shard_BCHW, shard_B = ranks.shard(images_BCHW, losses_B)
        assert len(shard_B) == len(shard_BCHW) > 0
        means.append(ranks.weight_loss(shard_B.mean(), images))
        if means[-1]:
            seen += shard_BCHW.flatten().tolist()
    assert seen == [*range(images)]
    assert torch.stack(means).mean() == pytest.approx(losses_B.mean().item())


def test_dropout_in_two_processes_is_refused_before_anything_is_written(tmp_path):
    settings = from_config(compose(["method=clip_lora"]))
    data = gather(settings.data)
    model = build_model(settings, data)
    batches = few_shot_batches(settings, data, model)
    run = Run(settings, model, RunFolder(tmp_path / "run"), batches, ranks=Ranks(0, 2))
    with pytest.raises(InputError, match=r"adapter\.dropout: 2 processes would drop other values"):
        run.do(data)
    assert [*tmp_path.iterdir()] == []


def test_a_sweep_under_torchrun_is_refused(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    done = call("-m", "method=so,adamw")
    assert done.code == 2
    assert "--multirun: torchrun's 2 processes do one run together" in done.err


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_resumes(data_root, tmp_path):
    """The second of two processes is killed in training. The next pair ends as one process does."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    more = [*METHODS["so"], "schedule.max_steps=40", "checkpoint_seconds=0.01"]
    running = start(*_options(pair, data_root), *more)
    try:
        deadline = time.monotonic() + 300
        while not [*pair.glob("eurosat-*/checkpoint.pt")]:
            assert running.poll() is None, "the run has ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (progress,) = pair.glob("eurosat-*/progress.json")
        first = json.loads(progress.read_text())["pid"]
        (second,) = {*_children(running.pid)} - {first}
        os.kill(second, signal.SIGKILL)
        _, err = running.communicate(timeout=120)
        assert running.returncode != 0
        assert not Path(f"/proc/{first}").exists()  # torchrun has ended and reaped it
    finally:
        running.kill()
    process = f"process 2 of 2 (rank 1, process id {second} on {HOST})"
    assert _messages(err) == [f"so_clip: {process} was killed"], err
    assert f"\n  {_command(pair, data_root, more)}\n" in err
    done = run_pair(*_options(pair, data_root), *more)
    assert done.code == 0, done.err
    assert "left aside" not in done.err
    done = spawn(*_options(alone, data_root), *more)
    assert done.code == 0, done.err
    (_, losses, predicted), (_, shared_losses, shared_predicted) = _read(alone), _read(pair)
    assert shared_losses == pytest.approx(losses, abs=1e-4)
    assert shared_predicted == predicted


@pytest.mark.slow
def test_a_killed_process_is_named_if_torchrun_terminates_the_other_first(data_root, tmp_path):
    """The first process is stopped until torchrun's SIGTERM waits for it: it cannot be earlier."""
    with _training_pair(tmp_path, data_root, []) as (running, first, second):
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not _is_pending(first, signal.SIGTERM):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(first, signal.SIGCONT)
        _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    process = f"process 2 of 2 (rank 1, process id {second} on {HOST})"
    assert _messages(err) == [f"so_clip: {process} was killed"], err


@contextmanager
def _training_pair(
    results: Path, data_root: Path, more: list[str]
) -> Iterator[tuple["subprocess.Popen[str]", int, int]]:
    """Yield torchrun and the ids of its two processes after the first step; kill all at the end."""
    running = start(*_options(results, data_root), *ENDLESS, *more)
    pids: tuple[int, ...] = ()
    try:
        pids = first, second = _training(running, results)
        yield running, first, second
    finally:
        running.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _training(running: "subprocess.Popen[str]", results: Path) -> tuple[int, int]:
    """Wait for the first step of a pair; return the ids of its first and second process."""
    deadline = time.monotonic() + 300
    while True:
        assert running.poll() is None, "the run has ended before its first step"
        assert time.monotonic() < deadline
        for file in results.glob("eurosat-*/progress.json"):
            progress = json.loads(file.read_text())
            if progress["step"]:
                (second,) = {*_children(running.pid)} - {progress["pid"]}
                return progress["pid"], second
        time.sleep(0.05)


def _is_pending(pid: int, number: signal.Signals) -> bool:
    """Return whether a signal waits for a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [
        int(line.split()[1], 16) for line in status.splitlines() if line[1:5] in ("hdPn", "igPn")
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_not_waited_for(rank, data_root, tmp_path):
    """A stopped process keeps its connections, so that only a time limit ends the wait."""
    more = ["rank_timeout_seconds=6"]
    with _training_pair(tmp_path, data_root, more) as (running, *pids):
        stopped = pids[rank]
        os.kill(stopped, signal.SIGSTOP)
        _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    process = f"process {rank + 1} of 2 (rank {rank}, process id {stopped} on {HOST})"
    problem = "gave no sign of life for 6 s (rank_timeout_seconds)"
    assert _messages(err) == [f"so_clip: {process} {problem}"]
    assert f"\n  {_command(tmp_path, data_root, [*ENDLESS, *more])}\n" in err


def _messages(err: str) -> list[str]:
    """Return the first part of each message of so_clip, without torchrun's own report."""
    lines = [line for line in err.splitlines() if line.startswith("so_clip: process")]
    return [line.partition(", and the others")[0] for line in lines]


def _command(folder: Path, data_root: Path, more: list[str]) -> str:
    words = ("--nproc-per-node", "2", "-m", "so_clip", *_options(folder, data_root), *more)
    return command(*words, program=("torchrun",))


def _children(pid: int) -> list[int]:
    """Return the ids of a process's live children; none if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
