"""`python -m so_clip export` on finished runs, and the code of the cards that it writes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from so_clip.adapters import load, merge, open_saved, restore, save
from so_clip.results.run_files import ADAPTER_FILE
from tests.helpers import hub_server
from tests.helpers.command import call
from tests.helpers.exports import IMAGES_BCHW, OPENAI_SIZES, adapted, snippet_logits
from tests.helpers.hub_server import TOKEN
from tests.helpers.whole_runs import run

pytestmark = pytest.mark.slow
METHODS = ("zero_shot", "so", "clip_lora", "taskres", "tip_adapter")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    trains = ("so", "clip_lora", "taskres")
    steps = dict.fromkeys(trains, ("schedule.max_steps=3",))
    return {
        method: run(
            folder, "experiment=demo", f"method={method}", "save=true", *steps.get(method, ())
        ).folder
        for method in METHODS
    }


def expected_BK(folder: Path) -> Tensor:
    """Return the run's logits of the first image."""
    restored = restore(open_saved(folder).adapter, device="cpu", precision="fp32", folder=folder)
    with torch.no_grad():
        return restored.classifier(IMAGES_BCHW[:1])


@pytest.mark.parametrize(
    ("method", "target", "place"),
    [
        ("so", "open_clip", "model.safetensors"),
        ("taskres", "open_clip", "model.pt"),
        ("so", "transformers", "."),
        ("clip_lora", "transformers", "."),
        ("clip_lora", "peft", "."),
    ],
)
def test_the_code_of_the_card_gives_the_logits_of_the_run(
    method: str,
    target: str,
    place: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = call("export", runs[method], "--to", target, tmp_path / "out" / place)
    assert done.code == 0, done.err
    printed = [Path(line).name for line in done.out.splitlines()]
    assert sorted(printed) == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert "has code that loads these files" in done.messages[0]
    assert ["classify with classifier.safetensors" in message for message in done.messages[1:]] == [
        True
    ] * (method == "taskres")
    if target == "peft":  # the card says how to make it
        made = call("export", runs["zero_shot"], "--to", "transformers", tmp_path / "out" / "BASE")
        assert made.code == 0, made.err
    found_BK = snippet_logits(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(found_BK, expected_BK(runs[method]), rtol=1e-5, atol=1e-4)


def test_open_clip_loads_a_file_in_openais_layout(tmp_path: Path) -> None:
    import open_clip

    adapted("so", config=OPENAI_SIZES, quick_gelu=True).write(tmp_path, "openai", "model.pt")
    file = str(tmp_path / "model.pt")
    model = open_clip.load_openai_model(file, precision="fp32", device="cpu")
    assert sum(value.numel() for value in model.parameters()) > 10**6


def test_an_average_of_two_runs_is_exported_with_classes_of_the_users(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = merge([load(runs[method] / ADAPTER_FILE) for method in ("so", "clip_lora")])
    save(merged, tmp_path / "average.safetensors")
    classes = ("--classes", "one,a dog")
    done = call(
        "export", tmp_path / "average.safetensors", "--to", "transformers", tmp_path, *classes
    )
    assert done.code == 0, done.err
    restored = restore(merged, device="cpu", class_names=("one", "a dog"))
    with torch.no_grad():
        expected_BK = restored.classifier(IMAGES_BCHW[:1])
    found_BK = snippet_logits(tmp_path, monkeypatch)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-5, atol=1e-4)


def test_a_push_needs_one_command(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        done = call(
            "export", runs["clip_lora"], "--to", "peft", tmp_path / "out", "--push", "lab/digits"
        )
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"{hub.address}/lab/digits"
    assert {*hub.files["lab/digits"][0]} == {file.name for file in (tmp_path / "out").iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A place for an export that must stay empty."""
    yield tmp_path / "out" / "model.pt"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("so", "openai", "tiny .* has the activation GELU"),
        ("tip_adapter", "open_clip", "method=tip_adapter: its logits are not linear"),
        ("so", "peft", "so changes CLIP's own weights"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    method: str, target: str, message: str, runs: dict[str, Path], place: Path
) -> None:
    done = call("export", runs[method], "--to", target, place)
    assert (done.code, done.out, len(done.messages)) == (2, "", 1)
    assert re.search(message, done.err)


def test_bad_arguments_are_refused_before_the_model_is_loaded(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    for arguments, message in (
        (("--to", "onnx", tmp_path), "--to"),
        (("--to", "open_clip", tmp_path / "model.onnx"), "its name must end in .safetensors or"),
        (("--to", "openai", tmp_path / "model.safetensors"), "its name must end in .pt or .pth"),
        (("--to", "transformers", tmp_path), "README.md exists"),
        (("--to", "transformers", tmp_path / "README.md"), "is a file, not a folder"),
    ):
        done = call("export", runs["so"], *arguments)
        assert (done.code, done.out, len(done.messages)) == (2, "", 1), arguments
        assert message in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
