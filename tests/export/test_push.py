"""Uploads to a stand-in for the hub: one commit, or one clear message."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants

from so_clip.errors import InputError
from so_clip.export import push as pushing
from so_clip.export.push import check_repository
from so_clip.export.write import push_export, write_export
from tests.helpers import hub_server
from tests.helpers.exports import adapted_so, pixels_BCHW
from tests.helpers.hub_server import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The stand-in has no chunked storage of the hub's own protocol.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def test_an_export_is_one_commit_that_open_clip_loads(hub: Hub, tmp_path: Path) -> None:
    case = adapted_so()
    export, folder = case.export("open_clip", "mine.safetensors"), tmp_path / "out"
    write_export(export, folder)
    repository = check_repository("satellites")
    assert push_export(export, folder, repository) == f"{hub.address}/someone/satellites"
    assert hub.repositories == ["someone/satellites"]
    (files,) = hub.files["someone/satellites"]
    assert {*files} == {
        *("open_clip_model.safetensors", "open_clip_config.json", "classifier.safetensors"),
        *("classes.json", "README.md"),
    }
    assert b'"hf-hub:someone/satellites"' in files["README.md"]

    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files.items():
        (copy / name).write_bytes(content)
    model = open_clip.create_model(f"local-dir:{copy}").eval()
    with torch.no_grad():
        image_BD = model.encode_image(pixels_BCHW(), normalize=True)
        expected_BD = case.restored.classifier.backbone.model.encode_image(
            pixels_BCHW(), normalize=True
        )
    torch.testing.assert_close(image_BD, expected_BD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", [b"x" * 10, b'{"name": "', b"<html>log in</html>"])
def test_an_answer_that_does_not_end_or_is_no_json_is_no_hub(monkeypatch, body) -> None:
    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(10_000 if body.startswith(b"x") else 1):
                    self.wfile.write(body * 1000)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(InputError, match="gives no answer"):
            check_repository("satellites")
        server.shutdown()


def test_a_hub_that_stalls_ends_the_upload(hub: Hub, monkeypatch) -> None:
    repository = check_repository("satellites")
    monkeypatch.setattr(pushing, "SILENT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stalled = replace(repository, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match="did not take the files"):
            pushing.push(stalled, {"a.txt": b"a"}, "a file")


@pytest.mark.slow
def test_other_exports_keep_the_names_of_their_files(hub: Hub, tmp_path: Path) -> None:
    export = adapted_so().export("transformers")
    write_export(export, tmp_path)
    push_export(export, tmp_path, check_repository("lab/satellites"))
    (files,) = hub.files["lab/satellites"]
    assert files == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_refused_commit_leaves_no_file(hub: Hub, tmp_path: Path) -> None:
    export = adapted_so().export("transformers")
    write_export(export, tmp_path)
    repository = check_repository("lab/satellites")
    hub.refuses = "/commit/"
    with pytest.raises(InputError, match=r"--push lab/satellites: .* refuses the token"):
        push_export(export, tmp_path, repository)
    hub.status = 400
    with pytest.raises(InputError, match=r"did not take the files: .*none of them"):
        push_export(export, tmp_path, repository)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("lab/satellites", None, "there is no token of the hub. Set HF_TOKEN"),
        ("lab/satellites", "hf_wrong", r"refuses the token \(status 401\)"),
        ("lab/satel lites", TOKEN, "Give OWNER/NAME"),
        ("a/b/c", TOKEN, "Give OWNER/NAME"),
    ],
)
def test_a_bad_name_or_token_is_refused_before_any_work(
    name: str, token: str | None, message: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=f"--push {name}: .*{message}"):
        check_repository(name)
    assert hub.repositories == []


def test_a_hub_without_an_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "PROBE_SECONDS", 0.2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match=f"the hub at {address} gives no answer"):
            check_repository("lab/satellites")
    with pytest.raises(InputError, match=f"the hub at {address} gives no answer"):
        check_repository("lab/satellites")


def test_offline_mode_is_respected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        check_repository("lab/satellites")
    assert hub.requests == []
