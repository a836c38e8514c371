"""Does one sweep over and over, each time in processes that are all killed at some moment.

Run as `python -m tests.helpers.killed_sweeps RESULTS_DIR KILLS OVERRIDE...`. The sweep that is
killed goes on with the very same command until it lives to its end; then its folder is put aside as
RESULTS_DIR/<number>, the first of which nobody disturbed, and the sweep begins anew. The last is
let live. Prints as JSON how many were killed with how many runs finished.
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

# What a run imports late: each process here is a copy that has it already.
import so_clip.config.compose
import so_clip.run  # noqa: F401
from so_clip.__main__ import main


def _start(arguments: list[str]) -> int:
    """Do a sweep in a session of its own that has all libraries loaded; return its number."""
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
    """Check that what a killed sweep left is whole, and return how many runs are finished."""
    for path in [*folder.glob("*/[!.]*.json"), *folder.glob(".sweeps/*/**/[!.]*.json")]:
        json.loads(path.read_text())
    return len([*folder.glob("*/metrics.json")])


def _repeat(folder: Path, kills: int, overrides: list[str]) -> Counter[int]:
    at_work = folder / "at_work"
    arguments = [f"results_dir={at_work}", "threads=1", "evaluation.workers=0", *overrides]
    draw, finished, done = random.Random(0), Counter[int](), 0
    started = time.monotonic()
    assert os.waitpid(_start(arguments), 0)[1] == 0
    seconds = time.monotonic() - started
    while True:
        at_work.rename(folder / str(done))
        done += 1
        if finished.total() >= kills:
            return finished
        code = -1
        while code:
            begun, child = time.monotonic(), _start(arguments)
            if finished.total() < kills:
                time.sleep(draw.uniform(0, seconds))
                with suppress(ProcessLookupError):  # it has no session yet
                    os.killpg(child, signal.SIGKILL)
                os.kill(child, signal.SIGKILL)
            code = os.waitpid(child, 0)[1]
            assert code in (0, signal.SIGKILL)
            if not code:  # the machine has less to do by now, or there was less to do
                seconds = min(seconds, max(1.0, 1.5 * (time.monotonic() - begun)))
            else:
                finished[_check_whole(at_work)] += 1


if __name__ == "__main__":
    print(json.dumps(_repeat(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
