"""Published weights from a hub on this machine, from its cache, and errors without a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from so_clip.clip.loading.hub import pretrained_config
from so_clip.errors import InputError
from tests.helpers import hub_visit


# The tests of `visits` start a process that imports torch.
@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[3]
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    done = subprocess.run(
        [sys.executable, hub_visit.__file__, str(tmp_path_factory.mktemp("hub"))],
        # TQDM_POSITION: without it, the hub's client shows progress on terminals only.
        env=plain | {"PYTHONPATH": str(root), "TQDM_POSITION": "-1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


@pytest.mark.slow
@pytest.mark.parametrize(("hub", "at_most"), [("silent", 2), ("closed", 0), ("failing", 1)])
def test_an_unavailable_hub_is_reported_after_two_requests_at_most(
    hub: str, at_most: int, visits: dict[str, Any]
) -> None:
    """Without our probe, the hub's client retries for most of a minute."""
    visit = visits[hub]
    assert visit["error"] == "InputError"
    assert visits["limit"]["seconds"] <= 5
    assert visit["requests"] <= at_most
    for part in (
        "ViT-B-32-quickgelu",
        "pretrained=openai",
        "timm/vit_base_patch32_clip_224.openai",
        "backbone.checkpoint=FILE",
    ):
        assert part in visit["message"]


@pytest.mark.slow
def test_an_open_hub_delivers_with_a_progress_bar(visits: dict[str, Any]) -> None:
    assert visits["open"]["content"] == hub_visit.WEIGHTS.decode()
    assert set(visits["wanted"]["paths"]) == {hub_visit.PATH}
    assert "open_clip_model.safetensors: 100%" in visits["stderr"]


@pytest.mark.slow
def test_a_downloaded_file_needs_no_hub(visits: dict[str, Any]) -> None:
    assert visits["cached"]["content"] == hub_visit.WEIGHTS.decode()
    assert visits["cached"]["requests"] == 0


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from so_clip.clip.loading.hub import fetch_pretrained

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(InputError, match=r"CLIP-ViT-H-14-laion2B.*backbone.checkpoint=FILE"):
        fetch_pretrained("ViT-H-14", "laion2b_s32b_b79k")


@pytest.mark.parametrize(
    ("architecture", "tag", "message"),
    [
        ("ViT-B-16", "opena", "Did you mean 'openai'"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "It knows dfn2b, metaclip_400m"),
        ("ViT-M-16", "openai", "It knows none for it"),
    ],
)
def test_unknown_weights(architecture: str, tag: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pretrained_config(architecture, tag)
    assert f"backbone.pretrained={tag}" in str(caught.value)
