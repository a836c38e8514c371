"""Calls the program as a user does: in this process, or in a new process."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from so_clip.__main__ import main

T = TypeVar("T")
# How long a busy machine may take.
PATIENCE_SECONDS = 600
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def cells(self) -> str:
        """The output with each run of blanks as one, so that tables have no padding."""
        return re.sub(" {2,}", " ", self.out)

    @property
    def messages(self) -> list[str]:
        """The lines on stderr that begin with the program's name, one per message."""
        return [line for line in self.err.splitlines() if re.match(r"so_clip(\.\w+)?: ", line)]


def call(*arguments: object) -> Outcome:
    """Call the program in this process: a run's options, or a command and its arguments."""
    return captured(main, *arguments)


def captured(function: Callable[[], int], *arguments: object) -> Outcome:
    """Call a function that reads sys.argv and returns an exit code."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["so_clip", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = function()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """Return an environment in which a new process finds this checkout and uses one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def spawn(*arguments: object, cwd: Path | None = None) -> Outcome:
    """Call the program in a new process."""
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
    """Start the program in a new session. All its processes end with the block."""
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
    """Wait for the end of a started program."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return Outcome(process.returncode, out, err)


def until(true: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """Wait until a process makes a condition true, and return the condition's value."""
    for _ in range(PATIENCE_SECONDS * 20):
        value = true()
        if value:
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError


def shell_words(line: str) -> list[str]:
    """Return the words that a shell gives to the program `python` for a command line."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.decode().split("\0")[:-1]


def python(code: str, *arguments: object) -> str:
    """Run Python code in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
