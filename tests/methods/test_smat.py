"""method=smat: the merge at the start of a run, its heads, and what follows."""

import csv
import json
from pathlib import Path

import pytest
import torch

from so_clip.adapters import applied_to, load, restore
from so_clip.adapters.apply import apply
from so_clip.clip.load import load_backbone
from so_clip.config.compose import compose
from so_clip.config.early_checks import check_smat_file
from so_clip.config.parse import from_config
from so_clip.data.run_data import gather
from so_clip.errors import InputError
from so_clip.run import Result, run
from so_clip.smat.checkpoint_file import load_checkpoint
from so_clip.smat.task import class_means
from tests.helpers.command import call
from tests.helpers.smat_tasks import random_checkpoint, tiny_backbone


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = load_backbone("tiny", "embedded")
    file = tmp_path_factory.mktemp("smat") / "smat.safetensors"
    return random_checkpoint(file, backbone, backbone.weights_sha256)


def run_with(checkpoint: Path, results_dir: Path, *overrides: str) -> Result:
    options = ["method=smat", f"adapter.checkpoint={checkpoint}", f"results_dir={results_dir}"]
    # Two shots, and few test images would do; the digits are small.
    composed = compose([*options, "shots=2", "evaluation.workers=0", *overrides])
    settings = from_config(composed)
    return run(settings, gather(settings.data))


def changed(result: Result) -> dict[str, int]:
    with (result.folder / "changed.csv").open() as file:
        return {row["tensor"]: int(row["changed"]) for row in csv.DictReader(file)}


def test_the_direct_mode_computes_no_gradient(checkpoint, tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    result = run_with(checkpoint, tmp_path)
    assert result.metrics["steps"] == 0
    assert result.metrics["accuracy_percent"] != result.metrics["zero_shot_accuracy_percent"]


def test_the_merged_run_equals_the_functional_merge(checkpoint, tmp_path):
    result = run_with(checkpoint, tmp_path, "save=true")
    settings = from_config(compose(["method=smat", "shots=2"]))
    data = gather(settings.data)
    assert data.few_shot is not None
    plain = load_backbone("tiny", "embedded")
    images = [data.images.read(example.path) for example in data.few_shot.train]
    from torchvision.transforms.functional import pil_to_tensor

    images_SCHW = torch.stack([pil_to_tensor(plain.pixels.square(image)) for image in images])
    labels_S = torch.tensor([example.label for example in data.few_shot.train])
    with torch.no_grad():
        names = data.splits.class_names
        class_KD = plain.encode_text(plain.tokenize([f"a photo of a {name}." for name in names]))
        prototype_KD = class_means(plain.encode_image(images_SCHW), labels_S, 10)
        merged = load_checkpoint(checkpoint).smat.merge(plain.model, prototype_KD, class_KD)
    apply(plain, load(result.folder / "adapter.safetensors"))
    assert applied_to(plain) is not None
    for name, value in merged.items():
        assert torch.allclose(plain.model.get_parameter(name), value, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("head", ["prototype", "mean"])
def test_a_model_with_prototypes_is_restored_without_its_checkpoint(head, checkpoint, tmp_path):
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(checkpoint.read_bytes())
    result = run_with(copied, tmp_path, f"adapter.head={head}", "save=true")
    copied.unlink()
    adapter = load(result.folder / "adapter.safetensors")
    restored = restore(adapter, folder=result.folder)
    settings = from_config(compose(["method=smat", "shots=2"]))
    data = gather(settings.data)
    with torch.inference_mode():
        from torchvision.transforms.functional import pil_to_tensor

        pixels = restored.classifier.backbone.pixels
        images_NCHW = torch.stack(
            [
                pil_to_tensor(pixels.square(data.images.read(example.path)))
                for example in data.splits.test
            ]
        )
        predicted_N = restored.classifier(images_NCHW).argmax(dim=1)
    with (result.folder / "predictions.csv").open() as file:
        rows = [int(row["prediction"]) for row in csv.DictReader(file)]
    assert predicted_N.tolist() == rows


@pytest.mark.slow
def test_the_merge_counts_as_a_change_when_training_follows(checkpoint, tmp_path):
    result = run_with(
        checkpoint, tmp_path, "optimizer=so", "schedule.max_steps=1", "optimizer.density_ratio=1e-4"
    )
    assert result.metrics["steps"] == 1
    of_vision = [count for name, count in changed(result).items() if name.startswith("visual")]
    assert min(of_vision) > 1000  # SO alone would move two entries


@pytest.mark.parametrize("method", ["smat", "smat_clip_lora"])
def test_fine_tuning_has_fifty_steps_by_default(method):
    settings = from_config(compose([f"method={method}", "optimizer=adamw"]))
    assert settings.schedule.max_steps == 50
    assert from_config(compose(["method=smat"])).schedule.max_steps == 0


def test_a_run_is_evaluated_without_its_checkpoint(checkpoint, tmp_path):
    moved = tmp_path / "smat.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    result = run_with(moved, tmp_path, "save=true")
    moved.unlink()
    outcome = call("evaluate", result.folder)
    assert outcome.code == 0, outcome.err
    assert f"adapted accuracy {result.metrics['accuracy_percent']:.2f} %" in outcome.cells


@pytest.mark.slow
def test_the_fingerprint_has_the_content_of_the_checkpoint(checkpoint, tmp_path):
    first = run_with(checkpoint, tmp_path)
    moved = tmp_path / "smat.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    assert run_with(moved, tmp_path).skipped
    assert run_with(tmp_path, tmp_path).skipped  # the folder of a meta-training
    backbone = load_backbone("tiny", "embedded")
    random_checkpoint(moved, backbone, backbone.weights_sha256, experts=3)
    other = run_with(moved, tmp_path)
    assert not other.skipped
    assert other.folder != first.folder
    recorded = json.loads((other.folder / "metrics.json").read_text())
    assert recorded["accuracy_percent"] == other.metrics["accuracy_percent"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "method=smat starts from a meta-trained checkpoint, and adapter.checkpoint is null"),
        (["adapter.checkpoint=nowhere"], "adapter.checkpoint=nowhere: nowhere does not exist"),
    ],
)
def test_a_missing_checkpoint_is_refused_before_any_work(overrides, message, tmp_path):
    settings = from_config(compose(["method=smat", f"results_dir={tmp_path}", *overrides]))
    with pytest.raises(InputError, match=message):
        check_smat_file(settings.method)


def test_a_checkpoint_of_another_backbone_is_refused_before_any_work(tmp_path):
    other = tiny_backbone(blocks=6)
    file = random_checkpoint(tmp_path / "smat.safetensors", other, "0" * 64)
    with pytest.raises(InputError, match=r"belongs to another backbone: it was trained with small"):
        run_with(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["smat.safetensors"]
    with pytest.raises(InputError, match=r"adapter\.head=best: must be"):
        run_with(file, tmp_path, "adapter.head=best")
