"""Training images above a budget are decoded for each batch, and nothing else changes."""

import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.batches import TrainBatches
from so_clip.data.examples import Example
from so_clip.data.image_memory import (
    MIB,
    MOST_MIB,
    StreamedImages,
    auto_budget_mib,
    training_images,
)
from so_clip.data.images import ImageFolder
from so_clip.errors import InputError
from so_clip.fingerprint import settings_sha256
from tests.helpers.command import call
from tests.helpers.made_datasets import write_class_folders

SIZES = ((40, 30), (32, 64), (50, 50), (33, 47), (90, 20))


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for index, size in enumerate(SIZES):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{index}.png")
    return ImageFolder(tmp_path)


# The last repeats, as in a draw from a small class.
EXAMPLES = [Example(f"{index}.png", index % 2) for index in (*range(5), 3)]
BYTES = sum(3 * width * height for width, height in SIZES)


def batches(folder: ImageFolder, budget_mib: float | None, workers: int = 2) -> TrainBatches:
    images = training_images(folder, EXAMPLES, budget_mib, workers)
    labels = [example.label for example in EXAMPLES]
    return TrainBatches(images, labels, 4, 24, torch.Generator().manual_seed(3), "cpu")


def taken(source: TrainBatches, epochs: int = 2) -> list[torch.Tensor]:
    return [part for _ in range(epochs) for batch in source.epoch() for part in batch]


def assert_same(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert len(some) == len(others) > 0
    assert all(map(torch.equal, some, others))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_batches_are_bit_for_bit_those_in_memory(folder: ImageFolder, workers: int):
    kept, streamed = batches(folder, None), batches(folder, 1e-3, workers)
    assert (kept.streamed, streamed.streamed) == (False, True)
    assert_same(taken(kept), taken(streamed))
    assert torch.equal(kept.generator.get_state(), streamed.generator.get_state())


def test_a_stream_resumes_in_the_middle_of_an_epoch(folder: ImageFolder):
    whole, begun, resumed = (batches(folder, budget) for budget in (None, 1e-3, 1e-3))
    next(begun.epoch())
    resumed.load_state_dict(begun.state_dict())
    assert_same(taken(whole)[2:], taken(resumed))


def test_the_budget_counts_each_decoded_image_once(folder: ImageFolder):
    assert isinstance(training_images(folder, EXAMPLES, BYTES / MIB, 1), list)
    assert isinstance(training_images(folder, EXAMPLES, (BYTES - 1) / MIB, 1), StreamedImages)


def test_a_stream_names_an_unreadable_image_and_ends_its_threads(folder: ImageFolder):
    before = {thread.ident for thread in threading.enumerate()}
    streamed = batches(folder, 1e-3)
    (folder.root / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png: not an image"):
        taken(streamed)
    assert {thread.ident for thread in threading.enumerate()} <= before


def test_the_automatic_budget_depends_on_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    assert 0 < auto_budget_mib() <= MOST_MIB
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**30 // 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    assert auto_budget_mib() <= 256  # or less, in a container
    assert auto_budget_mib(parallel_runs=4) == auto_budget_mib() / 4


def test_parallel_runs_share_the_automatic_budget_and_keep_their_fingerprint():
    alone, shared = (from_config(compose(["threads=1"]), runs) for runs in (1, 64))
    assert (alone.parallel_runs, shared.parallel_runs) == (1, 64)
    assert settings_sha256(alone) == settings_sha256(shared)
    assert "parallel_runs" not in shared.record()


def test_only_an_explicit_budget_makes_another_run():
    prints = [
        settings_sha256(from_config(compose(overrides)))
        for overrides in ([], ["image_budget_mib=auto"], ["image_budget_mib=4096"])
    ]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(InputError, match="image_budget_mib=0: must be auto, or a number above 0"):
        from_config(compose(["image_budget_mib=0"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adamw", pytest.param("tip_adapter_f", marks=pytest.mark.slow)])
def test_runs_with_streamed_images_give_equal_results(method: str, tmp_path: Path):
    write_class_folders(tmp_path / "pets", ("ant", "bee", "cat"), images=8)
    outcomes = []
    for budget in ("auto", "0.001"):
        results = tmp_path / budget
        outcome = call(
            "experiment=demo",
            "dataset=folder",
            f"data_root={tmp_path / 'pets'}",
            *(f"method={method}", "schedule.max_steps=3", "shots=2", "schedule.batch_size=4"),
            *(f"image_budget_mib={budget}", f"results_dir={results}"),
        )
        assert outcome.code == 0, outcome.err
        (folder,) = results.glob("pets-*")
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["training_images_streamed"] == (budget != "auto")
        files = ("history.csv", "predictions.csv", "fewshot.json")
        outcomes.append([metrics["peak_memory_mib"], *((folder / f).read_text() for f in files)])
    assert outcomes[0] == outcomes[1]
