"""Calls the command lines as a user does: in this process, or in one of their own."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from so_clip.__main__ import main as so_clip_main

T = TypeVar("T")
# A machine may be busy with other things.
PATIENCE_SECONDS = 600
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines on stderr that begin with the program's name: one a message."""
        return [line for line in self.err.splitlines() if re.match(r"so_clip(\.\w+)?: ", line)]


def call(*arguments: object, main: Callable[[], int] = so_clip_main) -> Outcome:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["so_clip", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """Return an environment in which a process of its own finds this checkout, on one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def spawn(*arguments: object, cwd: Path | None = None) -> Outcome:
    """Run a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "so_clip", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=cwd,
        env=environment(),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command line in a session of its own, all of which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "so_clip", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | variables,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a command line that was started."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return Outcome(process.returncode, out, err)


def until(true: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """Wait for something that a process is to bring about, and return it."""
    for _ in range(PATIENCE_SECONDS * 20):
        value = true()
        if value:
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError


def python(code: str, *arguments: object) -> str:
    """Run Python code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
