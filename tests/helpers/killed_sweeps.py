"""Repeats one sweep in processes that are all killed at random moments.

Run as `python -m tests.helpers.killed_sweeps RESULTS_DIR KILLS OVERRIDE...`. The same
command continues a killed sweep until it finishes. Then its folder is moved to
RESULTS_DIR/<number>, and the sweep starts again. The first and the last sweep are not killed.
Prints as JSON the number of kills by the number of finished runs.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

# Imported here, so the forked processes have all modules that a run imports late.
import so_clip.config.compose
import so_clip.run  # noqa: F401
from so_clip.__main__ import main


def _start(arguments: list[str]) -> int:
    """Start a sweep in a forked process with its own session; return the process id."""
    child = os.fork()
    if not child:
        os.setsid()
        sys.argv = ["so_clip", "-m", *arguments]
        with Path(os.devnull).open("w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            code = main()
        os._exit(code)
    return child


def _check_whole(folder: Path) -> int:
    """Check that the files of a killed sweep are complete; return the number of finished runs."""
    for path in [*folder.glob("*/[!.]*.json"), *folder.glob(".sweeps/*/**/[!.]*.json")]:
        json.loads(path.read_text())
    return len([*folder.glob("*/metrics.json")])


def _repeat(folder: Path, kills: int, overrides: list[str]) -> Counter[int]:
    current = folder / "current"
    arguments = [f"results_dir={current}", "threads=1", "evaluation.workers=0", *overrides]
    draw, finished, done = random.Random(0), Counter[int](), 0
    started = time.monotonic()
    assert os.waitpid(_start(arguments), 0)[1] == 0
    seconds = time.monotonic() - started
    while True:
        current.rename(folder / str(done))
        done += 1
        if finished.total() >= kills:
            return finished
        code = -1
        while code:
            begun, child = time.monotonic(), _start(arguments)
            if finished.total() < kills:
                time.sleep(draw.uniform(0, seconds))
                with suppress(ProcessLookupError):  # the process has no session yet
                    os.killpg(child, signal.SIGKILL)
                os.kill(child, signal.SIGKILL)
            code = os.waitpid(child, 0)[1]
            assert code in (0, signal.SIGKILL)
            if not code:  # it was faster than before
                seconds = min(seconds, max(1.0, 1.5 * (time.monotonic() - begun)))
            else:
                finished[_check_whole(current)] += 1


if __name__ == "__main__":
    print(json.dumps(_repeat(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
