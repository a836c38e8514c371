"""AdaLoRA: its schedule, its penalty, and the choice of ranks by the optimizer's gradients."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.adalora import AdaLoRA
from so_clip.methods.peft_layers import adapted_layers
from tests.helpers.command import call
from tests.helpers.peft_cases import ROLES, loss_of, moved, small, vit_b16

NO_IMAGES: Any = None  # AdaLoRA does not read the few-shot images


class Run:
    """Training with AdaLoRA as in the training loop, which deletes gradients after each step."""

    def __init__(self, total_steps: int, **options: Any) -> None:
        self.classifier = small()
        settings = {"rank": 4, "target_rank": 2, "alpha": 4, "interval": 1, **options}
        self.adapter = AdaLoRA(ROLES, total_steps, **settings)
        self.parameters = self.adapter(self.classifier)
        self.adapter.start(self.classifier, NO_IMAGES)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-2, weight_decay=0)
        self.taken = 0

    def step(self) -> dict[str, Tensor]:
        """Take a step and return its gradients."""
        penalty = self.adapter.penalty(self.classifier)
        (loss_of(self.classifier) + (0 if penalty is None else penalty)).backward()
        gradients = {
            name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None
        }
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        assert not [*self.adapter.after_step(self.classifier, self.taken)]
        assert all(p.grad is None for p in self.parameters.values())
        return gradients

    def ranks(self) -> list[int]:
        """Return the number of non-zero entries of E, by matrix."""
        return [int(layer.lora_E["default"].count_nonzero()) for layer in layers(self.classifier)]


def layers(classifier: Classifier) -> list[Any]:
    return adapted_layers(classifier)


@pytest.mark.slow
def test_the_number_of_parameters_of_vit_b16_follows_from_the_shapes() -> None:
    settings = from_config(compose(["method=adalora"]))
    assert settings.method.adapter is not None
    options = dict(settings.method.adapter.options)
    assert options["total_steps"] == settings.schedule.max_steps == 2000
    assert settings.schedule.stop_loss == 0
    parameters = AdaLoRA(**options)(vit_b16())
    # A matrix has 12 (O + I) entries, and 12 on the diagonal. O and I of a block are 16 widths.
    expected = 12 * 16 * 12 * (768 + 512) + 96 * 12
    assert sum(value.numel() for value in parameters.values()) == expected


def test_ranks_fall_on_the_schedule() -> None:
    run = Run(20, warmup=0.25, final=0.25)
    totals = []
    for _ in range(20):
        run.step()
        totals.append(sum(run.ranks()))
    matrices = len(layers(run.classifier))
    # E begins at zero. B and A get a gradient only after E has had one.
    assert totals[:5] == [4 * matrices] * 5
    assert all(first >= second for first, second in pairwise(totals))
    assert totals[4] > totals[8] > totals[13]
    assert totals[14:] == [2 * matrices] * 6
    assert len(set(run.ranks())) > 1, "all matrices kept as many"
    for step in range(6, 15):
        left = 1 - (step - 5) / (15 - 5)
        assert totals[step - 1] == int(2 * matrices * left**3 + 2 * matrices)


def test_importance_is_smoothed_value_times_gradient() -> None:
    run = Run(20, beta1=0.6, beta2=0.7)
    mean = {name: torch.zeros_like(value) for name, value in run.parameters.items()}
    spread = {name: torch.zeros_like(value) for name, value in run.parameters.items()}
    for _ in range(3):
        gradients = run.step()
        for name, gradient in gradients.items():
            sensitivity = (run.parameters[name].detach() * gradient).abs()
            mean[name] = 0.6 * mean[name] + 0.4 * sensitivity
            spread[name] = 0.7 * spread[name] + 0.3 * (sensitivity - mean[name]).abs()
        if run.taken == 2:  # no rank has been taken yet, which would change values
            allocator = run.adapter._tuner.rankallocator
            assert set(allocator.exp_avg_ipt) == set(run.parameters)
            for name in run.parameters:
                torch.testing.assert_close(allocator.exp_avg_ipt[name], mean[name])
                torch.testing.assert_close(allocator.exp_avg_unc[name], spread[name])


def test_non_finite_gradients_of_a_skipped_step_count_as_zero() -> None:
    run = Run(20)
    run.step()
    loss_of(run.classifier).backward()
    for value in run.parameters.values():
        assert value.grad is not None
        value.grad.fill_(math.inf)
    run.optimizer.zero_grad(set_to_none=True)
    run.adapter.after_step(run.classifier, 2)
    allocator = run.adapter._tuner.rankallocator
    assert all(value.isfinite().all() for value in allocator.exp_avg_ipt.values())


def test_the_penalty_is_the_mean_distance_from_orthogonal_factors() -> None:
    run = Run(20, orthogonality=0.3)
    moved(run.parameters)
    expected, count = 0.0, 0
    for layer in layers(run.classifier):
        down, up = (layer.lora_A["default"].double(), layer.lora_B["default"].double())
        for gram in (down @ down.T, up.T @ up):
            expected += (gram - torch.eye(4, dtype=torch.float64)).pow(2).sum().sqrt().item()
            count += 1
    penalty = run.adapter.penalty(run.classifier)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * expected / count, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        again = run.adapter.penalty(run.classifier)
    assert again is not None
    assert again.item() == penalty.item()
    assert Run(20, orthogonality=0).adapter.penalty(run.classifier) is None


@pytest.mark.parametrize("total_steps", [2, 3, 5])
def test_short_runs_end_with_the_target_rank(total_steps: int) -> None:
    run = Run(total_steps)
    for _ in range(total_steps):
        run.step()
    assert sum(run.ranks()) <= 2 * len(layers(run.classifier))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 1}, "adapter.total_steps=1: must be 2 or more"),
        ({"rank": 8}, "adapter.target_rank=8: must be below adapter.rank=8"),
        ({"rank": 4, "target_rank": 6}, "adapter.target_rank=6: must be below adapter.rank=4"),
        ({"warmup": 1}, "adapter.warmup=1: must be in [0, 1)"),
        ({"final": -0.1}, "adapter.final=-0.1: must be in [0, 1)"),
        ({"warmup": 0.5, "final": 0.5}, "leave no steps between them"),
        ({"interval": 0}, "adapter.interval=0: must be 1 or more"),
        ({"orthogonality": -1}, "adapter.orthogonality=-1: must be 0 or above"),
        ({"beta1": 1}, "adapter.beta1=1: must lie between 0 and 1"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        AdaLoRA(ROLES, **{"total_steps": 100, **options})
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_of_the_command_line(tmp_path: Path) -> None:
    arguments = ["method=adalora", "shots=1", "schedule.max_steps=4", "evaluation.workers=0"]
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
