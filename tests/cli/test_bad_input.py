"""Bad input of every kind: exit code 2, one message that names it and a way out, and no leftovers.

A row holds arguments and parts of the message. In both, {bad} is a folder of broken files and
{good} a small whole dataset. tests/config and tests/data/lists have more bad values and split
files; the rows here check that they reach the user.
"""

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.command import call, environment, spawn
from tests.helpers.small_disk import on_small_disk

IMAGES = [f"{name}/{index}.jpg" for name in ("ant", "bee") for index in range(4)]
SPLIT: dict[str, Any] = {
    "train": [["ant/0.jpg", 0, "ant"], ["bee/0.jpg", 1, "bee"]],
    "val": [["ant/1.jpg", 0, "ant"], ["bee/1.jpg", 1, "bee"]],
    "test": [["ant/2.jpg", 0, "ant"], ["bee/2.jpg", 1, "bee"]],
}
EUROSAT = "dataset=eurosat shots=1 split_protocol=coop data_root={good}"

CHOICES = [
    ("dataset=cifar10", ["dataset=cifar10", "Known: caltech101"]),
    ("dataset.name=mnist", ["mnist", "digits"]),
    ("dataset.name=../../etc/passwd", ["../../etc/passwd", "digits"]),
    ("method=lorra", ["method=lorra", "'lora'"]),
    ("dataset=null", ["GROUP=CHOICE", "--help"]),
    ("+shot=4", ["shot: there is no such option", "'shots'"]),
    ("optimizer.kappa=1e-3", ["optimizer.kappa", "--help"]),
    ("~schedule.max_steps", ["schedule.max_steps is missing"]),
    ("shots", ["shots: there is no such command", "OPTION=VALUE"]),
    ("demo", ["demo: there is no such command. Did you mean experiment=demo?"]),
    ("tabel", ["tabel: there is no such command", "'table'"]),
    ("-m method=lorra,so", ["method=lorra", "'lora'"]),
    ("--sweep", ["--sweep: there is no such flag", "--help"]),
]
VALUES = [
    ("shots=0", ["shots=0", "1 or more"]),
    ("schedule.max_steps=0", ["schedule.max_steps=0", "method=zero_shot"]),
    ("dataset=imagenet_r", ["dataset=imagenet_r", "testing only", "method=zero_shot"]),
]
MODELS = [
    ("method=adamw +optimizer.capturable=true", ["optimizer.capturable=true", "the device is cpu"]),
    ("method=adamw +optimizer.T=5", ["optimizer.T=5", "AdamW", "'~optimizer."]),
    ("method=adamw +optimizer.sampled_gradients=true", ["sampled gradients", "AdamW", "SO"]),
    ("adapter=none", ["opens no parameters", "method=zero_shot"]),
    ("adapter.roles=[mlp_inn]", ["'mlp_inn' is no role", "Did you mean 'mlp_in'"]),
    ("+adapter.depth=3", ["adapter", "depth"]),
    ("backbone.architecture=ViT-B-33", ["ViT-B-33", "'ViT-B-32'"]),
    ("backbone.pretrained=openai", ["backbone.pretrained=openai", "embedded"]),
    ("backbone=vit_b32 backbone.pretrained=opanai", ["opanai", "'openai'"]),
    ("backbone.checkpoint={bad}/none.pt", ["none.pt", "backbone.checkpoint=FILE"]),
    ("backbone.checkpoint={bad}/other.pt", ["other.pt", "strange.weight", "positional_embedding"]),
    ("backbone.checkpoint={bad}/shape.pt", ["shape.pt", "visual.conv1.weight", "3"]),
    ("backbone.checkpoint={bad}", ["backbone.checkpoint="]),
]
DATA = [
    ("dataset=eurosat data_root={bad}/nowhere", ["{bad}/nowhere", "data_root=FOLDER"]),
    ("dataset=eurosat data_root={bad}/text.pt", ["text.pt is not a folder", "data_root=FOLDER"]),
    ("dataset=eurosat data_root=null", ["data_root is empty"]),
    ("dataset=dtd data_root={good}", ["split_zhou_DescribableTextures.json", "split_file=FILE"]),
    ("dataset=imagenet data_root={good}", ["{good}/imagenet"]),
    ("dataset=fgvc data_root={good}", ["{good}/fgvc"]),
    ("transfer=[dtd] data_root={good}", ["transfer=dtd", "split_zhou_DescribableTextures.json"]),
    (
        "transfer=[imagenet_sketch] data_root={good}",
        ["transfer=imagenet_sketch", "{good}/imagenet-sketch/images"],
    ),
    ("dataset=imagenet_a method=zero_shot data_root={good}", ["{good}/imagenet-adversarial"]),
    ("dataset.split_file={bad}/x.json", ["dataset.split_file", "Leave dataset.split_file out"]),
]
# By turns, so that the first rows are of each kind.
ROWS = [
    row for rows in zip_longest(CHOICES, VALUES, MODELS, DATA) for row in rows if row is not None
]
SPLIT_FILES: dict[str, tuple[Any, list[str]]] = {
    "nowhere": (None, ["No such file"]),
    "cut": (b'{"train": [["ant/0.jpg", 0,', ["not JSON"]),
    "climbs": (SPLIT | {"val": [["../ant/1.jpg", 0, "ant"]]}, ["'../ant/1.jpg'", "climbs out"]),
    "repeated": (SPLIT | {"test": SPLIT["train"]}, ["test[0] repeats", "ant/0.jpg", "train[0]"]),
    "missing_train": (SPLIT | {"train": [["ant/9.jpg", 0, "ant"], *SPLIT["train"][1:]]},
                      ["missing", "ant/9.jpg", "split_file=FILE"]),
    "missing_test": (SPLIT | {"test": [*SPLIT["test"], ["bee/9.jpg", 1, "bee"]]},
                     ["1 of", "missing", "bee/9.jpg"]),
    "cut_train": (SPLIT | {"train": [["bad/cut.jpg", 0, "ant"], *SPLIT["train"][1:]]},
                  ["bad/cut.jpg", "damaged", "etch it again"]),
    "cut_test": (SPLIT | {"test": [*SPLIT["test"], ["bad/cut.jpg", 1, "bee"]]},
                 ["bad/cut.jpg", "damaged", "etch it again"]),
    "empty_image": (SPLIT | {"test": [*SPLIT["test"], ["bad/empty.jpg", 1, "bee"]]},
                    ["bad/empty.jpg", "empty"]),
    "no_image": (SPLIT | {"test": [*SPLIT["test"], ["bad/text.jpg", 1, "bee"]]},
                 ["bad/text.jpg", "not an image"]),
}  # fmt: skip
PLACES = [
    ("{bad}/text.pt", "Not a directory|File exists"),
    ("{bad}/text.pt/runs", "Not a directory"),
    ("/proc/runs", "cannot be written"),
    ("null", "results_dir is empty"),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small EuroSAT, whole except for its folder bad/, and a folder of broken files."""
    good, bad = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("bad")
    images = good / "eurosat" / "2750"
    for index, name in enumerate(IMAGES):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 20 + index).convert("RGB").save(images / name)
    (good / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(SPLIT))
    (images / "bad").mkdir()
    whole = (images / IMAGES[0]).read_bytes()
    (images / "bad" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "bad" / "empty.jpg").write_bytes(b"")
    (images / "bad" / "text.jpg").write_text("no image")
    for name, (content, _) in SPLIT_FILES.items():
        if content is not None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (bad / f"{name}.json").write_bytes(data)
    (bad / "text.pt").write_text("no checkpoint")
    torch.save({"strange.weight": torch.zeros(3)}, bad / "other.pt")
    torch.save({"visual.conv1.weight": torch.zeros(3)}, bad / "shape.pt")
    return {"good": good, "bad": bad}


def _tree(*roots: Path) -> list[str]:
    return sorted(str(path) for root in roots for path in root.rglob("*"))


def _refused(
    arguments: list[str],
    parts: list[str],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _tree(tmp_path, *folders.values())
    done = call(*arguments)
    assert done.code == 2, done.err
    assert len(done.messages) == 1, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    message = done.err[done.err.index(done.messages[0]) :]
    for part in parts:
        assert part in message
    assert _tree(tmp_path, *folders.values()) == before


def _filled(text: str, folders: dict[str, Path]) -> str:
    for name, folder in folders.items():
        text = text.replace(f"{{{name}}}", str(folder))
    return text


@pytest.mark.fast_cases(12)
@pytest.mark.parametrize(("line", "parts"), ROWS)
def test_bad_options(line, parts, folders, tmp_path, monkeypatch):
    arguments = [_filled(argument, folders) for argument in line.split(" ")]
    parts = [_filled(part, folders) for part in parts]
    _refused([*arguments, "results_dir=results"], parts, folders, tmp_path, monkeypatch)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", SPLIT_FILES)
def test_bad_split_files_and_images(name, folders, tmp_path, monkeypatch):
    file = folders["bad"] / f"{name}.json"
    arguments = [*_filled(EUROSAT, folders).split(" "), f"dataset.split_file={file}"]
    _, parts = SPLIT_FILES[name]
    if "_image" not in name and not name.startswith(("missing", "cut_")):
        parts = [str(file), *parts]
    _refused([*arguments, "results_dir=results"], parts, folders, tmp_path, monkeypatch)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
@pytest.mark.parametrize(("place", "reason"), PLACES)
def test_bad_places_for_results(place, reason, sweep, folders, tmp_path, monkeypatch):
    place = _filled(place, folders)
    part = place if place != "null" else "results_dir="
    monkeypatch.chdir(tmp_path)
    before = _tree(tmp_path, *folders.values())
    done = call(*sweep, f"results_dir={place}")
    assert done.code == 2, done.err
    assert len(done.messages) == 1
    assert part in done.err
    assert any(part in done.err for part in reason.split("|"))
    assert "results_dir=FOLDER" in done.err
    assert _tree(tmp_path, *folders.values()) == before


def test_the_small_dataset_itself_is_accepted(folders, tmp_path):
    arguments = _filled(f"{EUROSAT} method=zero_shot", folders).split(" ")
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    assert len([*tmp_path.glob("[!.]*")]) == 1


@pytest.mark.fast_cases(1)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_is_refused(device, folders, tmp_path, monkeypatch):
    parts = [f"device={device}", "device=cpu"]
    _refused([f"device={device}", "results_dir=r"], parts, folders, tmp_path, monkeypatch)


@pytest.mark.slow
def test_bad_input_in_a_new_process(tmp_path):
    done = spawn("dataset=eurosta", "results_dir=results", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert len(done.messages) == len(done.err.splitlines()) == 1
    assert "'eurosat'" in done.err
    assert _tree(tmp_path) == []


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "so_clip", "backbone=vit_b32", f"results_dir={tmp_path / 'runs'}"],
        capture_output=True,
        text=True,
        env=environment() | nowhere,
    )
    assert done.returncode == 2
    for part in ("ViT-B-32-quickgelu", "openai", "backbone.checkpoint=FILE", "backbone=tiny"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_whole_files_and_no_finished_run(tmp_path):
    program = f'"$0" -m so_clip method=zero_shot results_dir={tmp_path}; code=$?'
    script = f"{program}; cd {tmp_path} && find . -type f; exit $code"
    done = on_small_disk(tmp_path, "32k", script)
    assert done.code == 2, done.err
    assert "predictions.csv: No space left on device" in done.err
    assert "Traceback" not in done.err
    left = sorted(Path(line).name for line in done.out.split())
    assert left == ["config.yaml", "error.json"]
