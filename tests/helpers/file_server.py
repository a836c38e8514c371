"""A small HTTP server on loopback that serves files correctly or with the faults of a test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """One file and how it is served.

    Attributes:
        data: its bytes.
        ranges: whether range requests are answered with the range.
        break_after: for each of the first answers, the bytes after which it breaks off.
        statuses: status codes of the first answers.
        status: the status code of the other answers.
        location: the target of a redirect.
        seconds_a_chunk: a pause before every 16 KiB.
        etag: the version in the ETag header.
        declared: the Content-Length header, if it is wrong.
        content_type: of the answer.
        send_length: whether there is a Content-Length header.
    """

    data: bytes = b""
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    status: int = 200
    location: str | None = None
    seconds_a_chunk: float = 0.0
    etag: str = '"1"'
    declared: int | str | None = None
    content_type: str = "application/octet-stream"
    send_length: bool = True


class Server:
    """The served files by path, and the requests as (path, Range header or "")."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str]] = []

    def serve(self, path: str, data: bytes = b"", **how: Any) -> str:
        """Serve `data` at `path` from now on; return its URL."""
        self.files[f"/{path}"] = Served(data, **how)
        return f"{self.address}/{path}"

    def ranges(self, path: str) -> list[str]:
        """The Range headers of the requests for `path`, in order."""
        return [header for asked, header in self.asked if asked == f"/{path}"]


@contextmanager
def running() -> Iterator[Server]:
    """Run a server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.asked.append((path, self.headers.get("Range", "")))
            served = server.files.get(path, Served(status=404))
            with suppress(ConnectionError):
                _answer(self, served)

        def log_message(self, *_args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(http.server_port)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, served: Served) -> None:
    status = served.statuses.pop(0) if served.statuses else served.status
    if served.location is not None or status != 200:
        handler.send_response(302 if served.location else status)
        if served.location:
            handler.send_header("Location", served.location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    first = _first(handler, served)
    if first is not None and first >= len(served.data):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(served.data)}")
        handler.end_headers()
        return
    body = served.data[first or 0 :]
    handler.send_response(200 if first is None else 206)
    if first is not None:
        last = len(served.data) - 1
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(served.data)}")
    handler.send_header("ETag", served.etag)
    handler.send_header("Content-Type", served.content_type)
    if served.send_length:
        length = len(body) if served.declared is None else served.declared
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    allowed = served.break_after.pop(0) if served.break_after else len(body)
    for start in range(0, min(allowed, len(body)), 16384):
        time.sleep(served.seconds_a_chunk)
        handler.wfile.write(body[start : min(start + 16384, allowed)])
        handler.wfile.flush()


def _first(handler: BaseHTTPRequestHandler, served: Served) -> int | None:
    """Return the first byte of the answer, or None for the whole file."""
    asked = handler.headers.get("Range", "")
    if not served.ranges or not asked:
        return None
    if handler.headers.get("If-Range", served.etag) != served.etag:
        return None
    return int(asked.removeprefix("bytes=").partition("-")[0])
