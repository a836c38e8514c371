"""Models of repositories, `hf-hub:ORG/NAME`, from a hub on this machine and from its cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from so_clip.clip.load import load_backbone
from so_clip.clip.loading.sources import cached_weights
from so_clip.errors import InputError
from tests.helpers.file_hub import serving
from tests.helpers.places import write_place
from tests.helpers.small_models import small_clip

NAME = "hf-hub:someone/mine"


class Hub:
    """A hub's repositories.

    Attributes:
        folders: by name, the files of a repository.
        refusals: by name, the hub's status and code for all files of a repository.
        asked: method and path of all requests.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, error code and content for a path."""
        repository, _, file = path.strip("/").partition("/resolve/main/")
        if repository in self.refusals:
            return *self.refusals[repository], b""
        folder = self.folders.get(repository)
        if folder is None:
            return 401, "RepoNotFound", b""
        if not (folder / file).is_file():
            return 404, "EntryNotFound", b""
        return 200, "", (folder / file).read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    with serving(hub, tmp_path / "cache", monkeypatch):
        yield hub


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_repository_is_loaded_once_and_then_from_the_cache(
    file: str, hub: Hub, tmp_path: Path
) -> None:
    hub.folders["someone/mine"] = write_place(tmp_path / "mine", file)
    assert cached_weights(NAME) is None
    backbone = load_backbone(NAME)
    assert torch.equal(backbone.model.ln_final.weight, small_clip(seed=3).ln_final.weight)
    assert backbone.description == f"{NAME} (its own weights)"
    assert cached_weights(NAME) is not None
    hub.asked.clear()
    again = load_backbone(NAME)
    assert hub.asked == []
    assert again.weights_sha256 == backbone.weights_sha256


def test_the_sizes_alone_need_no_weights(hub: Hub, tmp_path: Path) -> None:
    hub.folders["someone/mine"] = write_place(tmp_path / "mine")
    load_backbone(NAME, weightless=True)
    assert all(path.endswith("open_clip_config.json") for path in hub.asked)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, "RepoNotFound"), r"no repository someone/mine, or it is private.*`hf auth login`"),
        ((403, "GatedRepo"), r"someone/mine is gated\. Accept its terms.*HF_TOKEN"),
        ((503, ""), r"hf-hub:someone/mine cannot be downloaded: .*local-dir:FOLDER"),
    ],
    ids=["private", "gated", "failing"],
)
def test_a_repository_that_may_not_be_read(
    refusal: tuple[int, str], message: str, hub: Hub
) -> None:
    hub.refusals["someone/mine"] = refusal
    with pytest.raises(InputError, match=message) as error:
        load_backbone(NAME)
    assert "\n" not in str(error.value)
    assert len(hub.asked) <= 1


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("open_clip_config.json", r"has no open_clip_config\.json\. A model of transformers: "),
        ("open_clip_model.safetensors", r"no open_clip_model.safetensors and no open_clip_pytorch"),
    ],
)
def test_a_repository_without_a_file_of_open_clip(
    missing: str, message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.folders["someone/mine"] = write_place(tmp_path / "mine")
    (tmp_path / "mine" / missing).unlink()
    with pytest.raises(InputError, match=message):
        load_backbone(NAME)
