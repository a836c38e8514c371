"""A stand-in for the Hugging Face hub on loopback: takes a repository and one commit."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, USER = "hf_right", "someone"
# Files that the hub stores apart from the commit.
_LARGE = (".safetensors", ".pt", ".bin")


@dataclass
class Hub:
    """What the hub has got.

    Attributes:
        files: of each commit, by repository; content by path.
        repositories: created ones.
        refuses: a path whose requests get `status`.
        requests: all of them, in order.
    """

    address: str
    files: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    repositories: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    refuses: str = ""
    status: int = 403
    requests: list[str] = field(default_factory=list)


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub until the block ends."""

    class Handler(_Handler):
        pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = hub = Hub(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def log_message(self, *_args: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        hub.requests.append(f"{self.command} {path}")
        stored = self.command == "PUT"  # an address that holds its own permission
        if not stored and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif hub.refuses and hub.refuses in path:
            self._send(hub.status, {"error": "no"})
        elif stored:
            hub.large[path.removeprefix("/large/")] = body
            self._send(200, {})
        else:
            self._send(200, self._reply(path, body))

    def _reply(self, path: str, body: bytes) -> Any:
        hub = self.hub
        if path == "/api/whoami-v2":
            return {"name": USER, "type": "user"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or USER}/{asked['name']}"
            hub.repositories.append(name)
            return {"url": f"{hub.address}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            return {"objects": [self._place(file) for file in json.loads(body)["objects"]]}
        assert "/commit/" in path, path
        return self._commit(path.split("/commit/")[0].removeprefix("/api/models/"), body)

    def _place(self, file: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.address}/large/{file['oid']}"
        return {"oid": file["oid"], "size": file["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, repository: str, body: bytes) -> dict[str, str]:
        files: dict[str, bytes] = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        self.hub.files.setdefault(repository, []).append(files)
        oid = "c0ffee" * 6 + "c0ff"
        return {"commitUrl": f"{self.hub.address}/{repository}/commit/{oid}", "commitOid": oid}

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(_LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
