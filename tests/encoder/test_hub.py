"""Encoders of repositories, `hub:ORG/NAME`, from a hub on this machine and from its cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.load import load_encoder
from so_clip.errors import InputError
from tests.helpers.file_hub import COMMIT, serving
from tests.helpers.tiny_encoders import POSITIONS, encoder_folder

SOURCE = "hub:someone/mine"


class Hub:
    """A hub with one repository.

    Attributes:
        folder: the repository's files.
        refusal: the status and the hub's code for all requests; None: it answers.
        asked: method and path of all requests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, error code and content for a path."""
        if self.refusal is not None:
            return *self.refusal, b""
        if path.startswith("/api/models/someone/mine"):
            names = sorted(file.name for file in self.folder.iterdir())
            siblings = [{"rfilename": name} for name in names]
            info = {"id": "someone/mine", "sha": COMMIT, "siblings": siblings}
            return 200, "", json.dumps(info | {"private": False, "tags": []}).encode()
        file = self.folder / path.rpartition("/")[2]
        return (200, "", file.read_bytes()) if file.is_file() else (404, "EntryNotFound", b"")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(encoder_folder(tmp_path / "mine"))
    for name in ("tf_model.h5", "pytorch_model.bin", "flax_model.msgpack", "README.md"):
        (hub.folder / name).write_text("other files")

    with serving(hub, tmp_path / "cache", monkeypatch):
        yield hub


def loaded(source: str = SOURCE, weightless: bool = False) -> SentenceEncoder:
    return load_encoder(source, classes=2, seed=1, max_length=POSITIONS, weightless=weightless)


def test_a_repository_is_loaded_once_and_then_from_the_cache(hub):
    encoder = loaded()
    assert encoder.description == f"{SOURCE}@{COMMIT[:12]} (bert, new classifier)"
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    hub.asked.clear()
    again = loaded()
    assert hub.asked == []
    assert again.weights_sha256 == encoder.weights_sha256
    local = load_encoder(f"folder:{hub.folder}", classes=2, seed=1, max_length=POSITIONS)
    assert all(map(torch.equal, local.parameters(), encoder.parameters()))
    assert local.weights_sha256 == encoder.weights_sha256


def test_the_sizes_of_a_cached_repository_need_no_request(hub):
    with pytest.raises(InputError, match="its sizes are not known"):
        loaded(weightless=True)
    loaded()
    hub.asked.clear()
    encoder = loaded(weightless=True)
    assert hub.asked == []
    assert encoder.description == f"{SOURCE}@{COMMIT[:12]} (bert, no weights)"


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, "RepoNotFound"), r"no repository someone/mine, or it is private.*`hf auth login`"),
        ((403, "GatedRepo"), r"someone/mine is gated\. Accept its terms.*HF_TOKEN"),
        ((404, ""), r"someone/mine cannot be downloaded: .*model\.source=folder:PATH"),
    ],
    ids=["private", "gated", "failing"],
)
def test_a_refusal_of_the_hub_is_one_message(refusal, message, hub):
    hub.refusal = refusal
    with pytest.raises(InputError, match=message):
        loaded()


def test_a_repository_without_a_model_is_refused(hub):
    (hub.folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"the repository has no config\.json, so"):
        loaded()
