"""A hub on loopback that answers requests for files with a function of a test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0ff"


class Answers(Protocol):
    """What a hub answers.

    Attributes:
        asked: method and path of all requests.
    """

    asked: list[str]

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, error code and content for a path."""
        ...


@contextmanager
def serving(hub: Answers, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a hub's answers until the block ends; huggingface_hub asks there.

    Args:
        hub: answers.
        cache: folder of the hub's cache.
        monkeypatch: of the test.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            status, code, content = hub.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{len(content):040d}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + template[template.index("/{repo_id}") :],
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
