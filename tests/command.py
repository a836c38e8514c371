"""Calls the command lines as a user does: in this process, or in one of their own."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from so_clip.__main__ import main as so_clip_main

ROOT = Path(__file__).resolve().parent.parent


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


def spawn(*arguments: object, module: str = "so_clip", cwd: Path | None = None) -> Outcome:
    """Run a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=environment(),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def python(code: str, *arguments: object) -> str:
    """Run Python code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
