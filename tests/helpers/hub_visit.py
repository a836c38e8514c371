"""A program that test_hub.py starts: visits a small local hub and prints the results as JSON.

The hub is silent, closed, failing and open in turn. A separate process is needed, because the hub's
client reads the hub's address at its first import.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WEIGHTS = b"weights of a sort"
PATH = "/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors"


class SmallHub(BaseHTTPRequestHandler):
    status = 200
    wanted: list[str] = []  # noqa: RUF012 - shared by all requests on purpose

    def do_HEAD(self) -> None:
        self.wanted.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(WEIGHTS)))
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with suppress(ConnectionError):
            self.wfile.write(WEIGHTS)

    def log_message(self, *_args: Any) -> None:
        pass


def visit(fetch: Callable[[], Path]) -> dict[str, Any]:
    before = len(SmallHub.wanted)
    try:
        path = fetch()
        result = {"content": path.read_bytes().decode()}
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    return result | {"requests": len(SmallHub.wanted) - before}


def waiting(server: socket.socket) -> int:
    """Return the number of connections to a server that does not answer."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def main(cache: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": cache}
        from so_clip.clip.loading import hub

        def fetch() -> Path:
            return hub.fetch_pretrained("ViT-B-32-quickgelu", "openai")

        limit, hub.PROBE_SECONDS = hub.PROBE_SECONDS, 1
        results = {"silent": visit(fetch), "limit": {"seconds": limit}}
        results["silent"]["requests"] = waiting(silent)
    results["closed"] = visit(fetch)
    ThreadingHTTPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", port), SmallHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    SmallHub.status = 503
    results["failing"] = visit(fetch)
    SmallHub.status = 200
    results["open"] = visit(fetch)
    server.shutdown()
    server.server_close()
    results["cached"] = visit(fetch)
    results["wanted"] = {"paths": SmallHub.wanted}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
