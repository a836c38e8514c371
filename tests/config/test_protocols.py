"""Base-to-new, transfer, domain shift and imbalance: whole runs on small made datasets."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from so_clip import build as build_module
from so_clip import run
from so_clip.clip.classifier import Classifier
from so_clip.clip.prompts import class_prompts
from so_clip.data import find as find_module
from so_clip.data import run_data as gather_module
from so_clip.data.batches import TestStream
from so_clip.data.cards.card import load_card
from so_clip.data.run_data import NEW_CLASSES
from so_clip.results.scores import harmonic_mean, scores
from tests.helpers.choices import data_choice
from tests.helpers.command import Outcome, call
from tests.helpers.made_datasets import ANIMALS, write_class_folders, write_dtd, write_eurosat

QUICK = (
    "evaluation.workers=0",
    "evaluation.cache_dir=null",
    "shots=2",
    "split_protocol=coop",
    "backbone=tiny",
)
STEPS = ("schedule.max_steps=3", "schedule.stop_loss=0")
ADAMW = ("method=adamw", "optimizer.lr=1e-3", *STEPS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with small stand-ins of EuroSAT, DTD, ImageNet-A and ImageNet-V2."""
    folder = tmp_path_factory.mktemp("data")
    write_eurosat(folder)
    write_dtd(folder)
    # Stingray, junco and mushroom, and a file beside the folders, as in the published archive.
    a = folder / "imagenet-adversarial" / "imagenet-a"
    write_class_folders(a, ["n01498041", "n01534433", "n07734744"], images=3)
    (a / "README.txt").write_text("read me")
    v2 = folder / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    write_class_folders(v2, ["999", "1", "0"])
    return folder


class Run:
    """A finished run, read back."""

    def __init__(self, done: Outcome) -> None:
        assert done.code == 0, done.err
        self.messages = done.messages
        self.text = done.out
        self.folder = Path(done.out.rpartition("run folder")[2].strip())
        self.metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())

    def columns(self, name: str) -> dict[str, list[str]]:
        with (self.folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
        return {column: [row[column] for row in rows] for column in rows[0]}


def _run(root: Path, results: Path, *arguments: str, dataset: str = "eurosat") -> Run:
    places = (f"dataset={dataset}", f"data_root={root}", f"results_dir={results}")
    methods = [item for item in arguments if item.startswith("method=")]
    return Run(call(*places, *QUICK, *([] if methods else ADAMW), *arguments))


def _cut(root: Path, folder: Path, labels: range) -> str:
    """Write EuroSAT's split with only some classes, labels from 0; return it as an option."""
    split = json.loads((root / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    cut = {
        part: [[path, label - labels[0], name] for path, label, name in entries if label in labels]
        for part, entries in split.items()
    }
    file = folder / f"{labels[0]}.json"
    file.write_text(json.dumps(cut))
    return f"dataset.split_file={file}"


@pytest.fixture(scope="module")
def both_halves(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _run(root, tmp_path_factory.mktemp("both"), "protocol=base_to_new")


def test_base_to_new_trains_on_base_classes_and_tests_on_both(root, tmp_path, both_halves):
    done = both_halves
    base = _run(root, tmp_path, _cut(root, tmp_path, range(3)))
    new = _run(root, tmp_path, _cut(root, tmp_path, range(3, 5)), "method=zero_shot")
    assert done.columns("predictions") == base.columns("predictions")
    assert done.columns("history") == base.columns("history")
    # The new classes keep their labels in the dataset.
    ours, theirs = done.columns("predictions_new_classes"), new.columns("predictions")
    for column in ("label", "zero_shot_prediction"):
        assert [int(label) - 3 for label in ours[column]] == [int(item) for item in theirs[column]]
    assert ours["path"] == theirs["path"]
    assert ours["zero_shot_confidence"] != ours["confidence"]
    per_class = done.columns("per_class_new_classes")
    assert (per_class["label"], per_class["name"]) == (["3", "4"], ["dog", "eel"])
    metrics = done.metrics
    assert metrics["protocol"] == "base_to_new"
    for prefix in ("zero_shot_", ""):
        both = [metrics[f"{prefix}{half}_accuracy_percent"] for half in ("base", "new")]
        assert both[0] == metrics[f"{prefix}accuracy_percent"]
        assert both[0] == base.metrics[f"{prefix}accuracy_percent"]
        assert metrics[f"{prefix}harmonic_mean_percent"] == harmonic_mean(*both)
    assert metrics["zero_shot_new_accuracy_percent"] == new.metrics["accuracy_percent"]
    assert metrics[NEW_CLASSES] == scores(ours)
    few_shot = json.loads((done.folder / "fewshot.json").read_text())
    assert few_shot["classes"] == "base"
    assert {label for _, label in few_shot["train"] + few_shot["val"]} == {0, 1, 2}
    for words in ("base classes", "new classes", "harmonic mean"):
        assert words in done.text
    assert "base_to_new" in done.folder.name


def test_draw_prints_the_draw_of_a_base_to_new_run(root, both_halves):
    done = both_halves
    options = ("dataset=eurosat", f"data_root={root}", "shots=2", "split_protocol=coop")
    drawn = call("draw", *options, "protocol=base_to_new")
    assert json.loads(drawn.out) == json.loads((done.folder / "fewshot.json").read_text())


def test_zero_shot_is_measured_on_both_halves(root, tmp_path, both_halves):
    done = _run(root, tmp_path, "protocol=base_to_new", "method=zero_shot")
    trained = both_halves
    for key in ("base_accuracy_percent", "new_accuracy_percent", "harmonic_mean_percent"):
        assert done.metrics[key] == trained.metrics[f"zero_shot_{key}"]
        assert done.metrics[f"zero_shot_{key}"] == done.metrics[key]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "cocoop", "clip_lora", "two_stage"])
def test_other_kinds_of_methods_reach_new_classes(root, tmp_path, method):
    options = [f"method={method}", *STEPS, "protocol=base_to_new", "transfer=[dtd]"]
    options += {"clip_lora": ["optimizer.lr=1e-2"], "coop": ["adapter.length=4"]}.get(method, [])
    done = _run(root, tmp_path, *options)
    again = _run(root, tmp_path / "again", *options)
    for name in ("predictions_new_classes", "predictions_dtd"):
        columns = done.columns(name)
        assert columns == again.columns(name)
        assert columns["zero_shot_confidence"] != columns["confidence"]
    plain = _run(root, tmp_path, "method=zero_shot", "protocol=base_to_new", "transfer=[dtd]")
    for name in ("predictions", "predictions_new_classes", "predictions_dtd"):
        column = "zero_shot_confidence"
        ours, theirs = (map(float, item.columns(name)[column]) for item in (done, plain))
        assert list(ours) == pytest.approx(list(theirs), abs=1e-4)


def test_transfer_tests_the_trained_model_on_other_datasets(root, tmp_path, monkeypatch):
    models = []
    adapt = run.Run.adapt

    def noting(work: run.Run, *arguments: Any) -> Any:
        models.append(work.model)
        return adapt(work, *arguments)

    monkeypatch.setattr(run.Run, "adapt", noting)
    plain = _run(root, tmp_path)
    done = _run(root, tmp_path, "transfer=[imagenet_v2,dtd]")
    monkeypatch.undo()
    # Transfer does not change training and the run's own test.
    for name in ("history", "predictions", "per_class"):
        assert done.columns(name) == plain.columns(name)
    metrics = done.metrics
    assert list(metrics["transfer"]) == ["dtd", "imagenet_v2"]
    for name, figures_of in metrics["transfer"].items():
        alone = _run(root, tmp_path, "method=zero_shot", dataset=name)
        columns = done.columns(f"predictions_{name}")
        for key in ("path", "label"):
            assert columns[key] == alone.columns("predictions")[key]
        assert columns["zero_shot_prediction"] == alone.columns("predictions")["prediction"]
        again = scores(columns)
        assert again == {key: figures_of[key] for key in again}
        assert figures_of["test_images"] == len(columns["path"])
        assert figures_of["classes"] == 3
    for prefix in ("zero_shot_", ""):
        item = [
            figures_of[f"{prefix}accuracy_percent"] for figures_of in metrics["transfer"].values()
        ]
        assert metrics[f"{prefix}transfer_accuracy_percent"] == pytest.approx(sum(item) / 2)
    for words in ("on dtd", "on imagenet_v2", "average of these"):
        assert words in done.text
    _check_by_hand(models[-1].classifier, root, done)


def _check_by_hand(classifier: Classifier, root: Path, done: Run) -> None:
    """Classify DTD's test images with the trained towers and prompts of its own."""
    backbone = classifier.backbone
    tokens_PL = backbone.tokenize(
        class_prompts(["dotted", "fibrous", "grid"], ["a photo of a {}."])
    )
    data = gather_module.gather(data_choice("dtd", root, shots=0))
    other = Classifier(backbone, tokens_PL)
    stream = TestStream(data.images, data.splits.test, backbone.pixels, 4, 0)
    with torch.no_grad():
        rows = torch.cat([other(images_BCHW) for images_BCHW, _ in stream]).softmax(dim=1)
    columns = done.columns("predictions_dtd")
    assert [int(item) for item in columns["prediction"]] == rows.argmax(dim=1).tolist()
    confidence = [float(item) for item in columns["confidence"]]
    assert confidence == pytest.approx(rows.amax(dim=1).tolist(), abs=1e-4)
    assert columns["confidence"] != columns["zero_shot_confidence"]


@pytest.mark.slow
def test_imagenet_variants_are_tested_among_the_classes_that_have_a_folder(root, tmp_path):
    done = _run(root, tmp_path, "method=zero_shot", dataset="imagenet_a")
    classes = done.columns("per_class")
    assert classes["name"] == ["stingray", "junco", "mushroom"]
    assert classes["images"] == ["3", "3", "3"]
    assert set(done.columns("predictions")["prediction"]) <= {"0", "1", "2"}
    (message,) = done.messages
    assert "ImageNet-A: only 3 of 200 classes and 9 of 7500 images" in message
    done = _run(root, tmp_path, "method=zero_shot", dataset="imagenet_v2")
    names = done.columns("per_class")["name"]
    assert names == ["tench", "goldfish", "toilet paper"]
    assert done.columns("predictions")["path"][-1] == "999/1.png"


@pytest.fixture
def kin(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ImageNet-A be test images of EuroSAT's classes bee and dog."""
    names = ["n01498041", "n01534433", "n07734744"]

    def load(name: str, cards_dir: Path | None = None) -> Any:
        card = load_card(name, cards_dir)
        if name != "imagenet_a":
            return card
        return replace(
            card,
            classes_of="eurosat",
            class_folders=tuple(names),
            class_names=("bee", "cat", "dog"),
            parent_labels=(1, 2, 3),
        )

    for module in (find_module, build_module):
        monkeypatch.setattr(module, "load_card", load)


@pytest.mark.slow
def test_training_classes_are_columns_of_the_logits(root, tmp_path, kin, monkeypatch):
    done = _run(root, tmp_path / "columns", "transfer=[imagenet_a]")
    elsewhere = gather_module._transfer_test_set

    def renamed(*arguments: Any) -> Any:
        target = elsewhere(*arguments)
        assert target.columns == (1, 2, 3)
        return replace(target, columns=None)

    monkeypatch.setattr(gather_module, "_transfer_test_set", renamed)
    by_prompts = _run(root, tmp_path / "prompts", "transfer=[imagenet_a]")
    ours, theirs = (item.columns("predictions_imagenet_a") for item in (done, by_prompts))
    for column in ("path", "label", "zero_shot_prediction", "prediction"):
        assert ours[column] == theirs[column]
    for column in ("zero_shot_confidence", "confidence"):
        pairs = zip(map(float, ours[column]), map(float, theirs[column]), strict=True)
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in pairs)
    assert {*ours["prediction"]} <= {"0", "1", "2"}


@pytest.mark.slow
def test_a_class_bound_method_is_transferred_to_its_own_classes(root, tmp_path, kin):
    done = _run(root, tmp_path, "method=tip_adapter", "transfer=[imagenet_a]")
    columns = done.columns("predictions_imagenet_a")
    assert columns["confidence"] != columns["zero_shot_confidence"]


REFUSED = [
    (
        "protocol=base_to_new method=tip_adapter",
        ["protocol=base_to_new", "tip_adapter", "new ones"],
    ),
    ("transfer=[dtd] method=tip_adapter", ["transfer=dtd", "tip_adapter", "has others"]),
    ("protocol=base_to_new method=linear_probe", ["protocol=base_to_new", "linear_probe"]),
    ("dataset=imagenet_a", ["dataset=imagenet_a", "testing only", "transfer=[imagenet_a]"]),
    ("transfer=[fgvc]", ["transfer=fgvc", "fgvc_aircraft"]),
    ("transfer=[imagenet_r]", ["transfer=imagenet_r", "imagenet-r", "cannot be listed"]),
    ("transfer=[dtd] method=coop", ["transfer=dtd", "fibrous", "tokens"]),
    ("transfer=[digits] template=ensemble", ["transfer=digits", "template=ensemble"]),
    ("transfer=[dtt]", ["transfer=dtt", "Did you mean 'dtd'"]),
    ("transfer=dtd", ["transfer=dtd", "must be a list"]),
    ("imbalance=0", ["imbalance=0", "null"]),
    ("protocol=new", ["protocol=new", "base_to_new"]),
    ("transfer=[eurosat]", ["eurosat is the run's own dataset"]),
]


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize(("line", "parts"), REFUSED)
def test_impossible_protocols_are_refused_before_any_work(line, parts, root, tmp_path):
    done = call(
        "dataset=eurosat",
        f"data_root={root}",
        *QUICK,
        f"results_dir={tmp_path / 'runs'}",
        *line.split(),
    )
    assert done.code == 2, done.err
    (message,) = done.messages
    assert all(part in done.err for part in parts), message
    assert not (tmp_path / "runs").exists()


def test_a_missing_image_of_another_dataset_is_found_before_training(root, tmp_path):
    other = tmp_path / "data"
    write_eurosat(other)
    split = write_dtd(other)
    (other / "dtd" / "images" / split["test"][-1][0]).unlink()
    options = ("dataset=eurosat", f"data_root={other}", f"results_dir={tmp_path / 'runs'}")
    done = call(*options, *QUICK, "transfer=[dtd]")
    assert done.code == 2
    assert split["test"][-1][0] in done.err
    assert "step" not in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_imbalanced_draws_have_the_same_total_and_other_counts(root, tmp_path):
    even = _run(root, tmp_path)
    uneven = _run(root, tmp_path, "imbalance=0.3", "shots=3")
    document = json.loads((uneven.folder / "fewshot.json").read_text())
    assert document["imbalance"] == uneven.metrics["imbalance"] == 0.3
    assert sum(document["counts"]) == len(document["train"]) == 3 * len(ANIMALS)
    assert min(document["counts"]) >= 1
    assert max(document["counts"]) <= 6
    assert len(set(document["counts"])) > 1
    assert len({path for path, _ in document["train"]}) == 3 * len(ANIMALS)
    options = ("dataset=eurosat", f"data_root={root}", "shots=3", "split_protocol=coop")
    drawn = call("draw", *options, "imbalance=0.3")
    assert json.loads(drawn.out) == document
    assert even.metrics["imbalance"] is None


@pytest.mark.slow
def test_tables_have_a_row_for_each_protocol(root, tmp_path):
    for options in ([], ["protocol=base_to_new"], ["transfer=[dtd]"], ["imbalance=1"]):
        title = _run(root, tmp_path, *options).metrics["method_title"]
    done = call("table", tmp_path)
    assert (done.code, done.err) == (0, "")
    for line in (
        f"| 2 | {title} |",
        f"| 2 | {title} (imbalance=1.0) |",
        f"| 2 | {title} (protocol=base\\_to\\_new) |",
        f"| 2 | {title} (from eurosat) |",
    ):
        assert line in done.cells
    names = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    wanted = {"accuracy", "memory", "base_accuracy", "new_accuracy", "harmonic_mean", "transfer"}
    assert names == wanted
