"""What every export brings: the classifier, the classes, the card, and whole files or none."""

import json
import os
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
from so_clip.export.files import staged
from so_clip.export.write import Export, make_export, write_export
from so_clip.results.run_files import METRICS_FILE
from tests.helpers.exports import IMAGES_BCHW, Adapted, adapted, adapted_so

ODD_NAMES = ("![x](http://a.b)", "</td>|", "caf\u00e9\u202e", "---")


def classified(case: Adapted, export: Export) -> torch.Tensor:
    """Return logits from the classifier of an export and the image tower that is in the model."""
    with torch.no_grad():
        image_BD = case.restored.classifier.backbone.encode_image(IMAGES_BCHW)
    return image_BD @ export.classes.weight_KD.T + export.classes.bias_K


@pytest.mark.parametrize(
    ("method", "needs_classifier"),
    [
        *(("so", False), ("coop", True), ("lp_plus_plus", True)),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                *(("clip_lora", False), ("ia3", False), ("taskres", True)),
                *(("linear_probe", True), ("clap", True), ("two_stage", True)),
            )
        ),
    ],
)
def test_the_classifier_is_one_matrix(method: str, needs_classifier: bool) -> None:
    case = adapted(method)
    export = case.export("open_clip", "model.pt")
    assert export.needs_classifier is needs_classifier
    torch.testing.assert_close(classified(case, export), case.logits_BK, rtol=1e-5, atol=1e-4)
    text = export.card(export.content.loading)
    assert ("**Classify with `classifier.safetensors`.**" in text) is needs_classifier


@pytest.mark.parametrize("method", ["tip_adapter_f", "cocoop"])
def test_logits_that_no_matrix_gives_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=rf"method={method}: its logits are not linear.*predict"):
        adapted(method).export("open_clip", "model.pt")


def test_odd_class_names_and_their_prompts_are_written_as_they_are(tmp_path: Path) -> None:
    case = adapted("so", class_names=ODD_NAMES)
    case.write(tmp_path, "open_clip", "model.pt")
    values = json.loads((tmp_path / "classes.json").read_text("utf-8"))
    assert values["class_names"] == list(ODD_NAMES)
    assert values["prompts"] == [[f"a photo of a {name}."] for name in ODD_NAMES]
    with safe_open(tmp_path / "classifier.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(ODD_NAMES)
        assert file.get_tensor("weight").shape == (len(ODD_NAMES), 32)


def run_folder(folder: Path, case: Adapted, **values: object) -> Path:
    """Write the part of a run's metrics.json that cards read."""
    folder.mkdir()
    fingerprint = case.adapter.about.run_fingerprint
    metrics = {"run_fingerprint": fingerprint, "accuracy_percent": 87.654, **values}
    (folder / METRICS_FILE).write_text(json.dumps(metrics))
    return folder


def test_the_card_has_the_numbers_of_the_run_and_the_licence_of_the_data(tmp_path: Path) -> None:
    case = adapted_so()
    folder = run_folder(tmp_path / "run", case, test_images=1200, zero_shot_accuracy_percent="x")
    export = make_export(case.adapter, case.restored, "open_clip", "model.pt", folder)
    text = export.card(export.content.loading)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "few-shot", "so-clip"],
    }
    assert "| Accuracy (%) | Test images |\n| ---: | ---: |\n| 87.65 | 1200 |" in body
    assert "The licence of the data is MIT (<https://github.com/phelber/EuroSAT>)" in body
    assert case.adapter.about.base.weights_sha256 in body
    assert "- Trained on: EuroSAT (RGB), 2 images per class, seed 1" in body


def test_a_single_file_and_another_run_give_no_numbers(tmp_path: Path) -> None:
    case = adapted_so()
    folder = run_folder(tmp_path / "run", case, run_fingerprint="another")
    export = make_export(case.adapter, case.restored, "open_clip", "model.pt", folder)
    assert "## Scores" not in export.card(export.content.loading)


def test_foreign_texts_are_no_markup_in_the_card() -> None:
    case = adapted_so()
    about = case.adapter.about.model_copy(
        update={"dataset": "x\n# [a](http://b)", "method_title": "`rm`\n---\nlicense: mit"}
    )
    adapter = type(case.adapter)(about, case.adapter.changes, case.adapter.added)
    restored = Restored(**{**vars(case.restored), "about": about})
    text_of = make_export(adapter, restored, "open_clip", "a```.pt")
    body = text_of.card(text_of.content.loading).split("---\n", 2)[2]
    assert not re.search(r"^(license|# \[|---)", body, re.MULTILINE)
    assert "\\[a\\]" in body
    assert body.count("```") == 2


def test_existing_files_stay_unless_force_is_given(tmp_path: Path) -> None:
    export = adapted_so().export("transformers")
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


@pytest.mark.parametrize(
    "file", ["model.safetensors", pytest.param("model.pt", marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_nothing(file: str, tmp_path: Path) -> None:
    export = adapted_so().export("open_clip", file)
    with full_disk(), pytest.raises(InputError, match=r"cannot write .*File too large"):
        write_export(export, tmp_path / "new" / "folder")
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_export_left_is_removed_by_a_later_one(tmp_path):
    for name in (".export-old", ".export-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    for path in (tmp_path / ".export-old", tmp_path / ".export-old" / "model.safetensors"):
        os.utime(path, (1, 1))
    with staged(tmp_path) as staging:
        (staging / "a").write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".export-new", "a"]
