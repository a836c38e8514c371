"""What every export brings: the classifier, the classes, the card, and whole files or none."""

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from so_clip.adapters import Restored
from so_clip.errors import InputError
from so_clip.export.write import Export, make_export, write_export
from so_clip.results.run_files import METRICS_FILE
from tests.helpers.exports import IMAGES_BCHW, Adapted, adapted

ODD_NAMES = ("![x](http://a.b)", "</td>|", "caf\u00e9\u202e", "---")


def classified(case: Adapted, export: Export) -> torch.Tensor:
    """Return logits from the classifier of an export and the image tower that is in the model."""
    with torch.no_grad():
        image_BD = case.restored.classifier.backbone.encode_image(IMAGES_BCHW)
    return image_BD @ export.classes.weight_KD.T + export.classes.bias_K


@pytest.mark.parametrize(
    ("method", "needs_classifier"),
    [
        *(("so", False), ("clip_lora", False), ("coop", True), ("taskres", True)),
        *(("linear_probe", True), ("lp_plus_plus", True), ("two_stage", True)),
    ],
)
def test_the_classifier_is_one_matrix(method: str, needs_classifier: bool) -> None:
    case = adapted(method)
    export = case.export("open_clip", "model.pt")
    assert export.needs_classifier is needs_classifier
    torch.testing.assert_close(classified(case, export), case.logits_BK, rtol=1e-5, atol=1e-4)
    text = export.card(export.content.loading)
    assert ("**Classify with `classifier.safetensors`.**" in text) is needs_classifier
    adapter = type(case.adapter)(about, case.adapter.changes, case.adapter.added)
    restored = Restored(**{**vars(case.restored), "about": about})
    text_of = make_export(adapter, restored, "open_clip", "a```.pt")
    body = text_of.card(text_of.content.loading).split("---\n", 2)[2]
    assert not re.search(r"^(license|# \[|---)", body, re.MULTILINE)
    assert "http\\:" in body or "\\[a\\]" in body
    assert body.count("```") == 2


def test_existing_files_stay_unless_force_is_given(tmp_path: Path) -> None:
    export = adapted("so").export("transformers")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README.md exists.*--force"):
        write_export(export, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    write_export(export, tmp_path, force=True)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {(tmp_path / "README.md").stat().st_mode & 0o777}


@contextmanager
def full_disk() -> Iterator[None]:
    """Refuse files above 100 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
def test_a_full_disk_leaves_nothing(file: str, tmp_path: Path) -> None:
    export = adapted("so").export("open_clip", file)
    with full_disk(), pytest.raises(InputError, match=r"cannot write .*File too large"):
        write_export(export, tmp_path / "new" / "folder")
    assert [*tmp_path.iterdir()] == []
