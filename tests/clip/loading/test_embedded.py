"""The embedded CLIP's weights, and folders of others that were made like them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.tiny import pack
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture import tiny_card
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.errors import InputError


def test_stored_rows_are_used_and_the_others_follow_the_seed() -> None:
    from safetensors.torch import load_file

    from so_clip.system.paths import ASSETS_DIR

    stored = load_file(ASSETS_DIR / "tiny.safetensors")
    embedding = embedded_weights()["token_embedding.weight"]
    token_ids = stored["token_ids"].long()
    assert torch.equal(embedding[token_ids], stored["token_embedding.rows"].float())
    card = tiny_card()
    generator = torch.Generator().manual_seed(card["embedding_seed"])
    drawn = torch.randn(embedding.shape, generator=generator) * card["embedding_std"]
    others = torch.ones(len(embedding), dtype=torch.bool)
    others[token_ids] = False
    assert torch.equal(embedding[others], drawn[others])


def test_everything_is_float32_and_repeatable() -> None:
    first, second = embedded_weights(), embedded_weights()
    assert all(value.dtype == torch.float32 for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as scripts/pretrain_tiny.py writes it, of half the width."""
    folder = tmp_path_factory.mktemp("narrow")
    pack.save(pack.build_model(seed=3, width=64), [0, 7, 49407], folder, recipe={})
    return folder


def test_a_folder_of_another_width_is_a_backbone(narrow: Path) -> None:
    backbone = load_backbone("tiny", "embedded", narrow)
    assert backbone.architecture["vision_cfg"]["width"] == 64
    assert str(narrow) in backbone.description
    saved = pack.load(narrow)
    for name, value in load_backbone("tiny", None, narrow, explicit=False).model.named_parameters():
        assert torch.equal(value, saved.get_parameter(name))
    class_KD = backbone.encode_text(backbone.tokenize(["a photo of a three."]))
    assert class_KD.shape == (1, 48)


def test_sizes_come_from_the_folder_without_its_weights(narrow: Path, tmp_path: Path) -> None:
    shutil.copy(narrow / "tiny.json", tmp_path)
    sizes = [
        {name: value.shape for name, value in backbone.named_parameters()}
        for backbone in (
            load_backbone("tiny", "embedded", narrow),
            load_backbone("tiny", "embedded", tmp_path, weightless=True),
        )
    ]
    assert sizes[0] == sizes[1]


def _card(folder: Path, change: Callable[[dict], Any]) -> None:
    path = folder / "tiny.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


def _weights(folder: Path, **changed: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "tiny.safetensors"
    save_file(load_file(path) | changed, path)


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "tiny.json").unlink(), "tiny.json in this folder cannot be read"),
    (
        lambda folder: (folder / "tiny.json").write_text("{"),
        "tiny.json in this folder cannot be read",
    ),
    (lambda folder: (folder / "tiny.json").write_text("[]"), "architecture is None"),
    (lambda folder: _card(folder, lambda card: card.pop("mean")), "mean is None"),
    (lambda folder: _card(folder, lambda card: card["std"].pop()), "std is [0.5, 0.5]"),
    (
        lambda folder: _card(folder, lambda card: card["architecture"].update(embed_dim="48")),
        "architecture is",
    ),
    (
        lambda folder: _card(folder, lambda card: card["architecture"].update(embed_dim=96)),
        "does not fit the backbone",
    ),
    (lambda folder: (folder / "tiny.safetensors").unlink(), "there is no such checkpoint"),
    (lambda folder: (folder / "tiny.safetensors").write_bytes(b""), "is empty"),
    (
        lambda folder: _weights(folder, token_ids=torch.tensor([0, 7, 49408])),
        "one row for each id, ids below 49408",
    ),
    (
        lambda folder: _weights(folder, token_ids=torch.tensor([0, 7])),
        "one row for each id, ids below 49408",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_a_spoilt_folder_is_refused_by_name(
    spoil: Callable[[Path], Any], message: str, narrow: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(narrow, folder)
    spoil(folder)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        load_backbone("tiny", "embedded", folder)
    assert str(folder) in str(refusal.value)
