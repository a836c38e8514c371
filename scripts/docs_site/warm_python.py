"""A Python that has imported torch and so_clip, and runs each command in a fork of itself.

A page has many commands, and each would import torch again. Here a server imports once; a small
client stands for `python` and gives it the arguments, folder, environment and open files of the
command. The command runs in a fork, so it changes nothing for the next one.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("warm_client.py")
SOCKET = "SO_CLIP_WARM_PYTHON"  # names the server's socket to the client
_IMPORTED = (
    "torch",
    "torchvision",
    "open_clip",
    "hydra._internal.hydra",
    "hydra._internal.utils",
    "hydra_plugins.so_clip_sweeper",
    "scripts.docs_site.page_program",
    "pandas",
    "so_clip.cli.run",
    "so_clip.run",
    "so_clip.report.read",
    "so_clip.api.adapt",
)
_READY = "ready"
_DEPTH, _MOST_DEPTH = "SO_CLIP_PAGE_DEPTH", 3  # how many programs have called each other


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a server until the block ends; yield the path of its socket.

    Args:
        folder: for the socket and for an empty cache of the hub.
    """
    place = folder / "socket"
    variables = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    variables |= {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "scripts.docs_site.warm_python", str(place)],
        stdin=subprocess.PIPE,  # its end tells the server to end
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | variables,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        if server.stdout.readline().strip() != _READY:
            raise RuntimeError(
                "the server of the pages' commands did not start; its error is above"
            )
        yield str(place)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def main(place: str) -> int:
    """Serve until the parent process ends; in a fork, run a command and return its exit code."""
    for name in _IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the handlers of requests leave no zombies
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen(16)
    print(_READY, flush=True)
    while True:
        readable = select.select([listening.fileno(), 0], [], [])[0]
        if 0 in readable:
            os.killpg(0, signal.SIGKILL)
        connection = listening.accept()[0]
        if os.fork():
            connection.close()
            continue
        listening.close()
        request = _take(connection)
        if _waits(connection):
            return 0
        connection.close()
        # The command runs here, outside of the server's work, and ends as a process does.
        return _run(request)


def _take(connection: socket.socket) -> dict[str, Any]:
    """Return a client's request, and make its open files ours."""
    message, files, _, _ = socket.recv_fds(connection, 4, 3)
    (size,) = struct.unpack("!I", message)
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request: dict[str, Any] = json.loads(data)
    return request


def _waits(connection: socket.socket) -> bool:
    """Fork: the parent waits for the command, and returns True when the client has its code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        return False
    for number in range(3):  # else the reader of a pipe would wait for this process
        os.close(number)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                connection.sendall(struct.pack("!i", code if code >= 0 else 128 - code))
            os._exit(0)
        if select.select([connection], [], [], 0.01)[0]:  # the client has ended
            os.kill(child, signal.SIGTERM)
            time.sleep(0.5)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _run(request: dict[str, Any]) -> int:
    from scripts.docs_site.page_program import run

    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    depth = int(os.environ.get(_DEPTH, "0")) + 1
    if depth > _MOST_DEPTH:
        print("the page's programs call each other without an end", file=sys.stderr)
        return 1
    os.environ[_DEPTH] = str(depth)
    return run(request["program"], request["arguments"])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1]))
