"""TaskRes against the released formula, its first logits, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.taskres import TaskRes
from tests.helpers.command import call
from tests.helpers.small_models import small_backbone, small_clip, weightless_backbone
from tests.oracles.taskres_oracle import logits

PROMPTS = ["a photo of a dog.", "a photo of a very small cat.", "a drawing", "a photo of a cat."]
IMAGES_BCHW = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)

NO_IMAGES: Any = None  # TaskRes does not read the few-shot images


def small(prompts_per_class: int = 1, dtype: torch.dtype = torch.float64) -> Classifier:
    backbone = small_backbone().to(dtype)
    explicit_attention(backbone.model)
    tokens_PL = backbone.tokenize(PROMPTS)
    return Classifier(backbone, tokens_PL, prompts_per_class=prompts_per_class)


def started(classifier: Classifier, alpha: float) -> torch.nn.Parameter:
    adapter = TaskRes(alpha)
    parameters = adapter(classifier)
    adapter.start(classifier, NO_IMAGES)
    assert [*parameters] == ["head.residual"]
    return parameters["head.residual"]


@pytest.mark.parametrize("alpha", [0.5, 1.0, -2.0])
def test_logits_and_gradient_equal_the_released_formula(alpha: float) -> None:
    classifier = small()
    residual_KD = started(classifier, alpha)
    assert not residual_KD.any()
    draw = torch.Generator().manual_seed(1)
    residual_KD.data = torch.randn(residual_KD.shape, generator=draw, dtype=torch.float64) / 5
    weights_BK = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    found_BK = classifier(IMAGES_BCHW)
    (found_KD,) = torch.autograd.grad((found_BK * weights_BK).sum(), residual_KD)

    own = residual_KD.detach().clone().requires_grad_()
    model = small_clip().double()
    with torch.no_grad():
        text_KD = model.encode_text(classifier.tokens_PL)
        image_BD = small_backbone().double().encode_image(IMAGES_BCHW)
    assert (text_KD.norm(dim=1) - 1).abs().min() > 0.05, "the length makes no difference here"
    expected_BK = logits(image_BD, text_KD, own, alpha, 100.0)
    (expected_KD,) = torch.autograd.grad((expected_BK * weights_BK).sum(), own)
    torch.testing.assert_close(found_BK, expected_BK, rtol=0, atol=1e-9)
    torch.testing.assert_close(found_KD, expected_KD, rtol=1e-9, atol=1e-9)


def test_a_class_with_several_prompts_starts_at_zero_shot_with_their_mean_length() -> None:
    classifier = small(prompts_per_class=2)
    with torch.no_grad():
        before_BK = classifier(IMAGES_BCHW)
        residual_KD = started(classifier, 0.5)
        assert residual_KD.shape == (2, 32)
        torch.testing.assert_close(classifier(IMAGES_BCHW), before_BK, rtol=0, atol=1e-9)
        text_PD = small_clip().double().encode_text(classifier.tokens_PL)
        residual_KD.normal_(generator=torch.Generator().manual_seed(2))
        image_BD = small_backbone().double().encode_image(IMAGES_BCHW)
        text_KD = torch.stack(
            [
                F.normalize(F.normalize(pair_2D, dim=1).mean(dim=0), dim=0)
                * pair_2D.norm(dim=1).mean()
                for pair_2D in text_PD.split(2)
            ]
        )
        expected_BK = logits(image_BD, text_KD, residual_KD, 0.5, 100.0)
        torch.testing.assert_close(classifier(IMAGES_BCHW), expected_BK, rtol=0, atol=1e-9)


def test_both_towers_stay_frozen_and_the_prompts_are_encoded_once() -> None:
    classifier = small(dtype=torch.float32)
    started(classifier, 0.5)
    runs = []
    classifier.backbone.model.ln_final.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(3):
        classifier(IMAGES_BCHW).sum().backward()
    assert len(runs) <= 1
    graded = [name for name, value in classifier.named().items() if value.grad is not None]
    assert graded == ["head.residual"]
    assert TaskRes.class_bound


def test_it_has_a_parameter_for_each_class_and_dimension_of_vit_b16() -> None:
    backbone = weightless_backbone()
    classifier = Classifier(backbone, backbone.tokenize([f"class {i}" for i in range(47)]))
    assert TaskRes()(classifier)["head.residual"].shape == (47, 512)


def test_the_method_has_the_papers_settings() -> None:
    settings = from_config(compose(["method=taskres", "shots=16", "dataset=dtd"]))
    assert settings.method.adapter is not None
    assert settings.method.adapter.options["alpha"] == 0.5
    optimizer = settings.method.optimizer
    assert (optimizer.target, optimizer.options["lr"]) == ("torch.optim.Adam", 2e-3)
    assert optimizer.options["weight_decay"] == 5e-4
    schedule = settings.schedule
    # 200 epochs of 752 images: two whole batches each.
    assert (schedule.max_steps, schedule.batch_size, schedule.drop_last) == (400, 256, True)
    assert (schedule.stop_loss, schedule.lr_min) == (0, 0)


def test_the_epochs_follow_the_shots_and_rate_and_alpha_the_dataset() -> None:
    config = compose(["method=taskres", "dataset=eurosat"])
    for shots, steps in ((1, 100), (4, 100), (5, 200), (8, 200), (16, 200)):
        config.shots = shots
        assert config.schedule.max_steps == steps  # an epoch is one batch of up to 160 images
    assert (config.optimizer.lr, config.adapter.alpha) == (2e-3, 0.5)
    config.dataset.name = "oxford_flowers"
    assert (config.optimizer.lr, config.adapter.alpha) == (2e-3, 1)
    config.dataset.name = "imagenet"
    assert (config.optimizer.lr, config.adapter.alpha) == (2e-4, 0.5)
    assert config.schedule.max_steps == 200 * 62


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (0, "adapter.alpha=0: nothing would be trained"),
        ("x", "adapter.alpha=x: must be a finite number"),
        (float("inf"), "adapter.alpha=inf: must be a finite number"),
        (True, "adapter.alpha=True: must be a finite number"),
    ],
)
def test_bad_options_are_errors(alpha: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        TaskRes(alpha)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_of_the_command_line(tmp_path: Path) -> None:
    arguments = ["method=taskres", "shots=1", "schedule.max_steps=3", "evaluation.workers=0"]
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    (metrics,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    assert metrics["trainable_parameters"] == metrics["changed_parameters"] == 10 * 96


@pytest.mark.slow
def test_a_run_on_vit_b16_can_be_forecast() -> None:
    arguments = ["method=taskres", "dataset=eurosat", "backbone=vit_b16", "device=cpu"]
    done = call("forecast", *arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["trainable_parameters"] == 10 * 512
