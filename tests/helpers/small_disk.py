"""Scripts on a disk that fills up."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import Outcome, environment


def on_small_disk(folder: Path, size: str, script: str, *arguments: str) -> Outcome:
    """Run a shell script that finds a disk of `size` at a folder, such as "64k".

    The test is skipped if this process cannot mount one.

    Args:
        folder: exists already.
        size: as `mount` takes it.
        script: may call Python as "$0".
        arguments: the script's "$1", and so on.
    """
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    shell = ["unshare", "-rm", "sh", "-c"]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    if subprocess.run([*shell, mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a small disk of its own")
    done = subprocess.run(
        [*shell, f"{mount} && {{ {script}; }}", sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
