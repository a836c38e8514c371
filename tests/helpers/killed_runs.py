"""Repeats one run in processes that are killed at random moments.

Run as `python -m tests.helpers.killed_runs RESULTS_DIR KILLS WORD...`, with the words of a run in
one thread, or of a meta-training. When a process finishes the run, the run's folder is moved to
RESULTS_DIR/<number>, and the run starts again. The last process is not killed. Prints as JSON the
number of kills in each stage.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

# Imported here, so the forked processes have all modules that a run imports late.
import so_clip.config.compose
import so_clip.meta.run
import so_clip.run
import so_clip.sentences.run  # noqa: F401
from so_clip.__main__ import main


def _start(arguments: list[str]) -> int:
    """Start a run in a forked process; return the process id."""
    child = os.fork()
    if not child:
        sys.argv = ["so_clip", *arguments]
        with Path(os.devnull).open("w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            code = main()
        os._exit(code)
    return child


def _stage(folder: Path) -> str:
    """Return the stage of a killed run, after a check that its files are complete."""
    (run,) = _runs(folder) or [None]
    if run is None:
        return "before"
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    for path in run.glob("[!.]*.csv"):
        assert path.read_text().endswith("\n"), path
    if (run / "checkpoint.pt").exists():
        states = torch.load(run / "checkpoint.pt", weights_only=True)["states"]
        return "training" if {"optimizer", "meta_training"} & {*states} else "evaluation"
    return "start"


def _runs(folder: Path) -> list[Path]:
    """Return the run folders that are not moved yet: at most one."""
    return [path for path in folder.glob("[!.]*") if not path.name.isdecimal()]


def _repeat(folder: Path, kills: int, words: list[str]) -> Counter[str]:
    arguments = [*words, f"results_dir={folder}"]
    draw, stages, done = random.Random(0), Counter[str](), 0
    started = time.monotonic()
    assert os.waitpid(_start(arguments), 0)[1] == 0
    seconds = time.monotonic() - started
    while True:
        (finished,) = _runs(folder)
        shutil.move(finished, folder / str(done))
        done += 1
        if stages.total() >= kills:
            return stages
        code = -1
        while code:
            child = _start(arguments)
            if stages.total() < kills:
                time.sleep(draw.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            code = os.waitpid(child, 0)[1]
            assert code in (0, signal.SIGKILL)
            if code:
                stages[_stage(folder)] += 1


if __name__ == "__main__":
    print(json.dumps(_repeat(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
