"""Meta-training as a whole: sparsity, schedules, resume, and what changes."""

import io
import math

import pytest
import torch

from so_clip.errors import InputError
from so_clip.runtime.precision import Precision
from so_clip.smat.options import TrainingOptions
from so_clip.smat.training import MetaTraining
from tests.helpers.smat_tasks import (
    random_task,
    shake,
    shared_backbone,
    small_smat,
    tiny_backbone,
    training,
)


@pytest.mark.parametrize("granularity", [pytest.param("weight", marks=pytest.mark.slow), "row"])
def test_masks_reach_their_sparsity_and_the_multipliers_return_to_zero(granularity):
    backbone = tiny_backbone(blocks=1, dtype=torch.float32)
    smat = small_smat(backbone, granularity=granularity, sparsity=0.8)
    options = {"tasks_per_update": 1, "lambda_lr": 0.3, "schedule": "cosine", "warmup_share": 0.0}
    # Planned for longer than trained, so that the rates stay high.
    meta = training(backbone, smat, tasks=1000, distillation=0.0, **options)
    task = random_task(backbone, ways=2, shots=1, queries=1)
    assert max(meta.sparsities()) < 0.01
    highest, seen = [0.0, 0.0], 0
    while seen < 200 and not (min(meta.sparsities()) > 0.8 and max(meta.lambdas()) == 0):
        meta.learn(task)
        highest = [max(pair) for pair in zip(highest, meta.lambdas(), strict=True)]
        seen += 1
    assert min(highest) > 0.1  # both were pressed
    assert all(abs(sparsity - 0.8) < 0.02 for sparsity in meta.sparsities())
    assert meta.lambdas() == [0.0, 0.0]


def test_the_multipliers_rise_by_the_weight_of_their_expert():
    backbone = shared_backbone()
    smat = small_smat(backbone, sparsity=0.9)
    meta = training(backbone, smat, tasks_per_update=2, lambda_lr=0.5)
    records = [meta.learn(random_task(backbone, seed)) for seed in (1, 2)]
    mean_M = torch.stack([record.expert_M for record in records]).mean(dim=0)
    first = small_smat(backbone).experts.sparsity_M()
    wanted = 0.5 * mean_M * (0.9 - first)
    assert torch.allclose(smat.multiplier_M.double(), wanted.double(), rtol=1e-6)


def test_every_trained_tensor_changes_and_the_base_does_not():
    backbone = tiny_backbone()
    before = backbone.weights_sha256
    smat = small_smat(backbone)
    first = {name: value.clone() for name, value in smat.named_parameters()}
    meta = training(backbone, smat, delta_lr=1e-2, tasks_per_update=1, lambda_lr=0.1)
    for seed in range(4):
        meta.learn(random_task(backbone, seed))
    for name, value in smat.named_parameters():
        assert value.requires_grad
        assert not torch.equal(value, first[name]), name
    assert backbone.weights_sha256 == before
    assert not any(value.requires_grad for value in backbone.parameters())


def test_keys_that_are_drawn_again_are_never_trained():
    backbone = shared_backbone()
    smat = small_smat(backbone, keys="redrawn")
    keys, skills = smat.router.keys.clone(), smat.router.skills.clone()
    meta = training(backbone, smat, tasks_per_update=1, delta_lr=1e-2)
    for seed in range(3):
        meta.learn(random_task(backbone, seed))
    assert torch.equal(smat.router.keys, keys)
    assert torch.equal(smat.router.skills, skills)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_training_has_the_same_weights_bit_for_bit(stop):
    backbone = tiny_backbone(dtype=torch.float32)
    options = {"delta_lr": 1e-2, "lambda_lr": 0.1}

    def fresh() -> MetaTraining:
        return training(backbone, small_smat(backbone, noise=True), **options)

    whole, first, second = fresh(), fresh(), fresh()
    for seed in range(6):
        whole.learn(random_task(backbone, seed))
    for seed in range(stop):  # 3 is in the middle of an update
        first.learn(random_task(backbone, seed))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(stop, 6):
        second.learn(random_task(backbone, seed))
    assert second.tasks == whole.tasks == 6
    for name, value in whole.smat.state_dict().items():
        assert torch.equal(value, second.smat.state_dict()[name]), name


def test_noise_changes_the_masks_of_a_task_and_nothing_else():
    backbone = shared_backbone()
    found = []
    for noise in (False, True):
        smat = small_smat(backbone, noise=noise)
        shake(smat)
        meta = training(backbone, smat)
        found.append(meta.learn(random_task(backbone)))
    assert torch.equal(found[0].expert_M, found[1].expert_M)
    assert found[0].loss != found[1].loss


def test_the_temperature_falls_over_its_share_of_the_tasks():
    options = TrainingOptions(tasks=50_000)
    # The paper's: max(0.5, 5 - tasks / 4000).
    for tasks in (0, 4000, 17_999, 18_000, 40_000):
        assert options.temperature_at(tasks) == pytest.approx(max(0.5, 5 - tasks / 4000))


def test_the_cosine_has_a_warm_up():
    backbone = shared_backbone()
    meta = training(backbone, small_smat(backbone), tasks=80, tasks_per_update=4)
    factors = [meta.rate_factor(update) for update in range(20)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[11] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))


def test_the_released_schedule_goes_by_epochs_of_2000_tasks():
    backbone = shared_backbone()
    meta = training(
        backbone, small_smat(backbone), tasks=50_000, tasks_per_update=4, schedule="released"
    )
    per_epoch = 500
    assert meta.rate_factor(0) == 0
    assert [meta.rate_factor(epoch * per_epoch) for epoch in (1, 4, 5)] == [0.2, 0.8, 1.0]
    # A run of 25 epochs does not come to the end of the cosine of 50.
    assert 0.5 < meta.rate_factor(25 * per_epoch - 1) < 0.65
    meta.learn(random_task(backbone))
    for _ in range(3):
        meta.learn(random_task(backbone))
    rates = {name: made.param_groups[0]["lr"] for name, made in meta.optimizers.items()}
    assert rates == {"delta": 1e-6, "masks": 1e-6, "router": 0}


def test_half_precision_with_a_loss_scale_is_refused():
    backbone = tiny_backbone(dtype=torch.float32)
    with pytest.raises(InputError, match="precision=fp16: gradients of single"):
        MetaTraining(
            backbone,
            small_smat(backbone),
            TrainingOptions(),
            Precision("fp16", torch.device("cpu")),
            seed=0,
        )
