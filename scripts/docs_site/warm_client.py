"""Stands for a program of a page: gives its arguments to the server of warm_python.py.

Called as `warm_client.py PROGRAM ARGUMENTS`. It imports little, so that it starts fast.
"""

import json
import os
import socket
import struct
import sys


def main() -> int:
    """Send the command; return its exit code."""
    request = {
        "program": sys.argv[1],
        "arguments": sys.argv[2:],
        "folder": os.getcwd(),  # noqa: PTH109  pathlib would take longer than all the rest
        "environment": dict(os.environ),
    }
    data = json.dumps(request).encode()
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["SO_CLIP_WARM_PYTHON"])
    socket.send_fds(server, [struct.pack("!I", len(data))], [0, 1, 2])
    server.sendall(data)
    answer = server.recv(4)
    return struct.unpack("!i", answer)[0] if answer else 1


if __name__ == "__main__":
    sys.exit(main())
