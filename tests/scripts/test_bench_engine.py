"""The benchmark runs, its reference is SO, and its counts are right."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib", reason="the plots need the pretrain extra")

from scripts import bench_engine
from scripts.bench.contenders import (
    ADAMW,
    BALANCED,
    CONTENDERS,
    ENGINE,
    LORA,
    REFERENCE,
    SMALL,
    Contender,
    Shape,
    make_trainer,
)
from scripts.bench.estimate import CPU, count, estimate
from scripts.bench.plans import FULL, SHAPED_LIKE
from scripts.bench.reference_so import ReferenceSO
from so_clip.clip.engine.packed_text import PackedPrompts
from so_clip.optim.so import SO
from so_clip.optim.support import entry_count
from tests.oracles.flops_oracle import Tower, engine_step, last_block_forward, reference_step

TINY = Shape("dtd", 2, "tiny")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    bench_engine.main(["--quick", "--threads", "1", "--out", str(folder)])
    assert torch.get_num_threads() == threads
    return folder


def read(folder: Path, name: str) -> pd.DataFrame:
    end = "" if name == "launches" else "_cpu"
    return pd.read_csv(folder / "tables" / f"engine_{name}{end}.csv")


@pytest.mark.slow
def test_quick_writes_every_table_and_plot(quick: Path) -> None:
    for name in set(bench_engine.SECTIONS) - set(bench_engine.ALLOCATED):
        table = read(quick, name)
        assert len(table)
        assert (table["torch"] == torch.__version__).all()
        assert (table["threads"] == 1).all()
        assert table["hardware"].str.contains("cores").all()
        for column in table.columns:
            on_gpu = name == "graphs" and column.endswith("_mib")
            if column.endswith(("_seconds", "tflop", "_mib")) and not on_gpu:
                values = table[column].dropna()
                assert len(values)
                assert (values >= 0).all(), (name, column)
    for name in ("steps", "cost", "scaling"):
        assert (quick / "figures" / f"engine_{name}_cpu.png").stat().st_size > 10_000


@pytest.mark.slow
def test_step_tables_have_ratios_and_note_extrapolation(quick: Path) -> None:
    table = read(quick, "steps")
    assert set(table["contender"]) == {"reference", "lora", "adamw", "engine_balanced"}
    notes = table[table["contender"] == "reference"].set_index("dataset")["note"]
    assert pd.isna(notes["digits"])
    assert "extrapolated from 10 and 40 classes" in notes["dtd"]
    for _, part in table.groupby("dataset"):
        reference = part[part["contender"] == "reference"].iloc[0]
        for row in part.itertuples():
            assert row.step_seconds_min <= row.step_seconds <= row.step_seconds_max
            parts = row.forward_seconds + row.backward_seconds + row.optimizer_seconds
            assert parts == pytest.approx(row.step_seconds, rel=1e-2)
            faster = reference["step_seconds"] / row.step_seconds
            assert row.times_faster_step_seconds == pytest.approx(faster, rel=1e-2)


@pytest.mark.slow
def test_steps_are_eager_and_captured_for_two_batches_and_operations_are_counted(
    quick: Path,
) -> None:
    table = read(quick, "graphs")
    assert table["note"].isna().all()
    ways = table.groupby(["dataset", "batch", "contender"])["steps_are"].agg(list)
    assert len(ways) == 2 * 2 * 4
    for (_, _, contender), found in ways.items():
        assert found == (["eager"] if contender == "reference" else ["eager", "captured"])
    assert (table["step_seconds"] > 0).all()
    counted = read(quick, "launches").set_index(["dataset", "contender"])
    parts = [f"{part}_operations" for part in ("forward", "backward", "optimizer")]
    assert (counted[parts].sum(axis=1) == counted["step_operations"]).all()
    assert (counted.xs("engine_fast", level="contender")["part_of_adamw"] <= 1.05).all()


@pytest.mark.slow
def test_what_does_not_fit_into_the_time_is_skipped_and_said(tmp_path: Path) -> None:
    options = ["--quick", "--only", "graphs", "--seconds", "0", "--out", str(tmp_path)]
    bench_engine.main(options)
    table = read(tmp_path, "graphs")
    assert (table["note"] == "skipped: the time was over").all()
    assert table["step_seconds"].isna().all()


@pytest.mark.slow
def test_costs_are_relative_to_the_reference(quick: Path) -> None:
    table = read(quick, "cost").set_index(["dataset", "contender"])
    for dataset in ("digits", "eurosat"):
        engine, reference = table.loc[dataset, "engine_balanced"], table.loc[dataset, "reference"]
        percent = 100 * (1 - engine["tflop"] / reference["tflop"])
        assert engine["flops_below_reference_percent"] == pytest.approx(percent, abs=0.1)
    mean = table.loc["mean of 2", "engine_balanced"]["flops_below_reference_percent"]
    both = table.xs("engine_balanced", level="contender")["flops_below_reference_percent"]
    assert mean == pytest.approx(both.iloc[:2].mean(), abs=0.1)
    parts = table[[f"{name}_mib" for name in ("weights", "gradients", "activations")]]
    whole = parts.sum(axis=1, skipna=False) + table["optimizer_state_mib"]
    pd.testing.assert_series_equal(whole, table["peak_memory_mib"], check_names=False, rtol=1e-2)


@pytest.mark.slow
def test_fake_steps_count_like_real_steps(quick: Path) -> None:
    table = read(quick, "memory_check")
    assert (table["tflop_of_real_step"] == table["tflop_of_fake_step"]).all()
    assert table["fake_by_real"].between(0.98, 1.02).all()


def test_the_full_plan_covers_all_contenders_and_datasets() -> None:
    assert SHAPED_LIKE == ("eurosat", "dtd", "sun397", "imagenet")
    assert set(FULL.main_contenders) < set(FULL.step_contenders) == set(CONTENDERS)
    assert len(FULL.flop_datasets) == 11
    assert (FULL.cost_batch, FULL.architecture) == (32, "ViT-B-16-quickgelu")
    prompts = Shape("imagenet", 1, "tiny").prompts()
    assert len(prompts) == 1000
    assert prompts[0] == "a photo of a tench."
    assert len(Shape("imagenet", 1, "tiny", classes=7).prompts()) == 7


@pytest.mark.slow
@pytest.mark.parametrize("contender", [BALANCED, SMALL])
def test_a_thousand_classes_take_little_more_memory_than_a_hundred(contender: Contender) -> None:
    def activations_mib(classes: int) -> float:
        shape = Shape("imagenet", 2, "ViT-B-32-quickgelu", classes=classes)
        memory = estimate(contender, shape).memory
        assert memory is not None
        return memory["activations_mib"]

    # Only class embeddings, logits and their gradients grow with the classes: by 20 MiB.
    assert activations_mib(1000) - activations_mib(100) < 25


class GivenSupports(ReferenceSO):
    """The reference with the supports of another optimizer, set before each step."""

    def __init__(self, params: list[nn.Parameter], like: dict[int, Tensor], **options) -> None:
        super().__init__(params, **options)
        self.like = like

    def draw(self, param: Tensor, count: int) -> Tensor:
        assert len(self.like[id(param)]) == count
        return self.like[id(param)]


@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_the_reference_is_so(order: str) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(7, 9), (30, 4), (1, 5)]
    ours = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    options = {"lr": 1e-2, "density_ratio": 0.2, "T": 3, "order": order}
    supports: dict[int, Tensor] = {}
    so, reference = SO(ours, **options), GivenSupports(theirs, supports, **options)
    for _ in range(20):
        for our, their in zip(ours, theirs, strict=True):
            our.grad = their.grad = torch.randn(our.shape, generator=draw)
            supports[id(their)] = so.support(our)
        so.step()
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5)


def test_the_reference_draws_new_supports_of_the_right_size_every_t_steps() -> None:
    param = nn.Parameter(torch.zeros(40, 50))
    optimizer = ReferenceSO([param], density_ratio=0.01, T=2)
    supports = []
    for _ in range(4):
        param.grad = torch.ones(40, 50)
        optimizer.step()
        supports.append(optimizer.state[param]["support"])
    assert supports[0] is supports[1]
    assert supports[2] is supports[3]
    assert not torch.equal(supports[0], supports[2])
    flat = supports[0][0] * 50 + supports[0][1]
    assert len(flat.unique()) == 20


def test_the_reference_permutes_on_the_device_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def randperm(count: int, **options) -> Tensor:
        seen.append((options["device"], options["generator"].device))
        return original(count, **options)

    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", randperm)
    for device in ["cpu", *["cuda:0"] * torch.cuda.is_available()]:
        param = nn.Parameter(torch.zeros(40, 50, device=device))
        assert ReferenceSO([param]).draw(param, 7).device == param.device
        assert seen.pop() == (param.device, param.device)


def test_contenders_match_their_names() -> None:
    reference = make_trainer(REFERENCE, TINY, CPU).classifier
    kinds = {type(module) for module in reference.modules()}
    assert nn.MultiheadAttention in kinds
    (chunk,) = reference.prompts.chunks
    assert chunk.tokens_UL.shape == (47, 16)
    for contender in (LORA, ADAMW, ENGINE):
        classifier = make_trainer(contender, TINY, CPU).classifier
        assert not any(isinstance(module, nn.MultiheadAttention) for module in classifier.modules())
        assert all(isinstance(chunk, PackedPrompts) for chunk in classifier.prompts.chunks)
    modes = [contender.memory for contender in (ENGINE, BALANCED, SMALL)]
    assert modes == ["fast", "balanced", "small"]


@pytest.mark.slow
def test_all_start_from_the_same_logits() -> None:
    logits = []
    for contender in CONTENDERS:
        trainer = make_trainer(contender, TINY, CPU)
        with torch.no_grad():
            logits.append(trainer.classifier(TINY.images(trainer.classifier.backbone, CPU)[0]))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-3)


def _tower(backbone_blocks: nn.ModuleList, rows: int, attended: int) -> Tower:
    width = backbone_blocks[0].ln_1.weight.shape[0]
    return Tower(len(backbone_blocks), width, rows, attended)


def _others(trainer, classes: int, rows: int) -> int:
    """Return FLOPs of patches, final projections and logits; their weights are frozen."""
    model, batch = trainer.classifier.backbone.model, TINY.batch
    patches = 2 * batch * model.visual.conv1.weight.numel() * (rows // batch - 1)
    image, text = model.visual.proj.numel(), model.text_projection.numel()
    logits = 3 * 2 * batch * classes * model.visual.proj.shape[1]
    return patches + 2 * 2 * (batch * image + classes * text) + logits


@pytest.mark.slow
def test_flops_of_the_reference_equal_the_formula() -> None:
    trainer = make_trainer(REFERENCE, TINY, CPU)
    backbone, (batch, classes, context) = trainer.classifier.backbone, (2, 47, 16)
    length = backbone.model.visual.positional_embedding.shape[0]
    vision = _tower(backbone.blocks("vision"), batch * length, batch * length**2)
    text = _tower(backbone.blocks("text"), classes * context, classes * context**2)
    expected = reference_step(vision, text, _others(trainer, classes, vision.rows))
    assert count(trainer, memory=False).flops == pytest.approx(expected, rel=1e-6)
    assert estimate(REFERENCE, TINY, memory=False).flops == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("contender", [ENGINE, pytest.param(BALANCED, marks=pytest.mark.slow)])
def test_flops_of_the_engine_equal_the_formula(contender: Contender) -> None:
    trainer = make_trainer(contender, TINY, CPU)
    backbone, (batch, classes) = trainer.classifier.backbone, (2, 47)
    length = backbone.model.visual.positional_embedding.shape[0]
    (chunk,) = trainer.classifier.prompts.chunks
    attended = sum(prompts * longest**2 for prompts, longest in chunk.shapes)
    vision = _tower(backbone.blocks("vision"), batch * length, batch * length**2)
    text = _tower(backbone.blocks("text"), len(chunk.tokens_N), attended)
    sampled = 0
    for tower, read in ((vision, batch), (text, classes)):
        for values in (3, 1, 4, 4):  # times D², of a block's matrices, the in-projection first
            entries = entry_count(values * tower.width**2, TINY.density_ratio)
            last = tower.rows if values == 3 else read
            sampled += 2 * entries * ((tower.layers - 1) * tower.rows + last)
    expected = engine_step(
        vision,
        text,
        (batch, classes),
        batch * length,
        sampled,
        _others(trainer, classes, vision.rows),
    )
    found = count(trainer, memory=False).flops
    if contender is ENGINE:
        assert found == expected
    else:  # balanced may recompute the last block of the images
        assert 0 <= found - expected <= last_block_forward(vision, batch, batch * length)
