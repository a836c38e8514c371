"""SO and sampled gradients in the Trainer of transformers, and its options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from so_clip import SO, sampled_gradients
from so_clip.optim.sampled import SampledGradient
from tests.helpers.other_trainers import (
    assert_falling,
    assert_small_support,
    losses_of,
    sentences,
    small_bert,
    trainer_arguments,
    transformers_trainer,
)

pytestmark = pytest.mark.slow
OPTIONS = {"lr": 2e-3, "density_ratio": 0.02, "T": 5}


def trained(
    folder: Path, sampling: bool, resume: str | None = None, seed: int = 0, **changes: Any
) -> tuple[nn.Module, Any]:
    """Train a small BERT; return it and the Trainer."""
    model = small_bert()
    optimizer = SO(model.named_parameters(), **OPTIONS, seed=seed)
    if sampling:
        sampled_gradients(model, optimizer)
    arguments = trainer_arguments(folder, **changes)
    trainer = transformers_trainer()(
        model, arguments, train_dataset=sentences(), optimizers=(optimizer, None)
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


@pytest.mark.parametrize(
    ("changes", "rounding"),
    [
        ({}, 1e-5),
        ({"gradient_accumulation_steps": 2, "lr_scheduler_type": "linear"}, 1e-5),
        ({"gradient_checkpointing": True}, 1e-5),
        ({"torch_compile_backend": "aot_eager"}, 1e-5),
        ({"bf16": True}, 2e-2),
    ],
    ids=["plain", "accumulation", "checkpointing", "compiled", "bf16"],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`")
def test_losses_are_those_of_dense_gradients(
    changes: dict[str, Any], rounding: float, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    dense, sampled = (trained(tmp_path, sampling, **changes)[1] for sampling in (False, True))
    assert losses_of(sampled) == pytest.approx(losses_of(dense), rel=rounding)
    assert_falling(losses_of(sampled))
    before = [*small_bert().parameters()]
    assert_small_support(before, sampled.optimizer.optimizer, steps=24)


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(tmp_path: Path) -> None:
    model, whole = trained(tmp_path / "whole", True)
    trained(tmp_path / "parts", True, max_steps=9, save_strategy="steps", save_steps=9)
    checkpoint = str(tmp_path / "parts" / "checkpoint-9")
    # Everything random in SO comes from the checkpoint.
    again, resumed = trained(tmp_path / "parts", True, checkpoint, seed=5)
    assert losses_of(resumed) == losses_of(whole)
    assert all(map(torch.equal, again.parameters(), model.parameters()))


def test_max_grad_norm_clips_by_the_norm_of_the_computed_values(tmp_path: Path) -> None:
    norms: list[float] = []

    def keep(optimizer: SO, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        values = [g.values_M if isinstance(g, SampledGradient) else g for g in grads]
        norms.append(float(torch.cat([value.flatten() for value in values]).norm()))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        _, trainer = trained(tmp_path, True, max_grad_norm=1e-2, max_steps=6)
    finally:
        handle.remove()
    assert norms == pytest.approx([1e-2] * 6, rel=1e-3)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
    assert min(logged) > 1e-2


def test_the_trainer_makes_the_optimizer(tmp_path: Path) -> None:
    """By `optimizer_cls_and_kwargs`, and by a subclass with `create_optimizer`."""
    Trainer = transformers_trainer()

    class SparseTrainer(Trainer):
        def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
            super().create_optimizer(model)
            sampled_gradients(self.model, self.optimizer)
            return self.optimizer

    losses = []
    for made in (Trainer, SparseTrainer):
        # Two groups: weights that decay, and biases and norms that do not.
        arguments = trainer_arguments(tmp_path, weight_decay=0.1)
        trainer = made(
            small_bert(),
            arguments,
            train_dataset=sentences(),
            optimizer_cls_and_kwargs=(SO, OPTIONS),
        )
        trainer.train()
        assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [0.1, 0]
        losses.append(losses_of(trainer))
        trainer.train()  # a second call continues with the same optimizer
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_falling(losses[1])
