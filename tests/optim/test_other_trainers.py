"""Sampled gradients under Lightning and Accelerate, whose clipping knows nothing of sampling."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.errors import InputError
from so_clip.optim.sampled import SampledGradient, clip_grad_norm_, sampled_gradients
from tests.helpers.other_trainers import (
    assert_falling,
    assert_small_support,
    lightning_task,
    lightning_trainer,
    network,
    vectors,
)
from tests.helpers.sampled_pairs import assert_equal, inputs, mlp

pytestmark = pytest.mark.slow
MAX_NORM = 1e-3
STEPS = 7


def pair() -> tuple[nn.Module, SO]:
    module = mlp()
    return module, SO(module.parameters(), 1e-2, density_ratio=0.05, T=3)


def loss_of(module: nn.Module, step: int) -> Tensor:
    return module(inputs(4, 20, seed=step)).square().mean()


def trained_by_hand(algorithm: str = "norm") -> nn.Module:
    module, optimizer = pair()
    sampled_gradients(module, optimizer)
    for step in range(STEPS):
        loss_of(module, step).backward()
        if algorithm == "norm":
            norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
            assert norm > 2 * MAX_NORM, "this test clips nothing"
        else:
            nn.utils.clip_grad_value_(module.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return module


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lightning_clips_sampled_gradients(algorithm: str, tmp_path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.optimizer = pair()
            sampled_gradients(self.module, self.optimizer)
            self.norms: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return loss_of(self.module, batch_idx)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            assert isinstance(self.module[0].weight.grad, SampledGradient)
            norms = lightning.utilities.grad_norm(self, norm_type=2)
            self.norms.append(float(norms["grad_2.0_norm_total"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    task = Task()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        gradient_clip_val=MAX_NORM,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, torch.utils.data.DataLoader(torch.zeros(STEPS, 1)))
    assert_equal(task.module, trained_by_hand(algorithm))
    assert len(task.norms) == STEPS
    assert min(task.norms) > 0


def lightning_run(
    steps: int, folder: Path, checkpoint: Path | None = None, size: int = 8, **changes
) -> tuple:
    """Train with sampled gradients; return the losses and Lightning's trainer."""

    class Task(lightning_task(network())):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = SO(self.parameters(), 1e-2, density_ratio=0.05, T=3)
            sampled_gradients(self, optimizer)
            return optimizer

    batches = torch.utils.data.DataLoader([*zip(*vectors(), strict=True)], batch_size=size)
    task, trainer = Task(), lightning_trainer(folder, max_steps=steps, **changes)
    trainer.fit(task, batches, ckpt_path=checkpoint)
    return task, trainer


def test_lightning_resumes_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    # One batch an epoch: Lightning repeats a batch if `fit` did not save the checkpoint.
    whole, _ = lightning_run(24, tmp_path, size=64)
    part, trainer = lightning_run(8, tmp_path, size=64)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    rest, _ = lightning_run(24, tmp_path, tmp_path / "part.ckpt", size=64)
    assert part.losses + rest.losses == whole.losses


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"accumulate_grad_batches": 2}],
    ids=str,
)
def test_options_of_lightning(changes: dict, tmp_path: Path) -> None:
    task, trainer = lightning_run(24, tmp_path, **changes)
    assert_falling(task.losses)
    before = [param.to(torch.float64) for param in network().parameters()]
    assert_small_support(before, trainer.optimizers[0], steps=24)


def test_a_second_fit_of_lightning_trains_with_its_new_optimizer(tmp_path: Path) -> None:
    task, trainer = lightning_run(8, tmp_path)
    before = [param.detach().clone() for param in task.parameters()]
    batches = torch.utils.data.DataLoader([*zip(*vectors(), strict=True)], batch_size=8)
    again = lightning_trainer(tmp_path, max_steps=8)
    again.fit(task, batches)
    assert again.optimizers[0] is not trainer.optimizers[0]
    assert_small_support(before, again.optimizers[0], steps=8)
    assert task.losses[-1] < task.losses[0]


def test_accelerate_restores_a_saved_state_bit_for_bit(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    module, optimizer = accelerator.prepare(*pair())
    sampled_gradients(module, optimizer)
    ends = []
    for start in (0, 4, 4):
        for step in range(start, start + 5):
            accelerator.backward(loss_of(module, step))
            optimizer.step()
            optimizer.zero_grad()
            if (start, step) == (0, 3):
                accelerator.save_state(tmp_path)
        ends.append([param.detach().clone() for param in module.parameters()])
        accelerator.load_state(tmp_path)
    assert all(map(torch.equal, ends[1], ends[2]))
    assert not torch.equal(ends[0][0], ends[1][0])


def test_accelerate_clips_sampled_gradients_of_the_optimizer_inside() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    module, optimizer = accelerator.prepare(*pair())
    handle = sampled_gradients(module, optimizer)
    assert len(handle.methods) == 3
    for step in range(STEPS):
        accelerator.backward(loss_of(module, step))
        norm = accelerator.clip_grad_norm_(module.parameters(), MAX_NORM)
        assert norm > 2 * MAX_NORM
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(module, trained_by_hand())
    accelerator.backward(loss_of(module, 0))
    norm = clip_grad_norm_(optimizer, 1e9)
    assert norm > 0
    torch.testing.assert_close(clip_grad_norm_(optimizer.optimizer, 1e9), norm)


def test_a_prepared_optimizer_without_supports_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    layer = nn.Linear(4, 4)
    optimizer = accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD(layer.parameters()))
    with pytest.raises(InputError, match=r"SGD reads whole gradients.*before it is wrapped"):
        sampled_gradients(layer, optimizer)
