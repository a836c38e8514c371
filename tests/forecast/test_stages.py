"""Forecasts of methods that train in stages or have a penalty, against real trainings."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from so_clip.build import assemble_model, build_optimizer, load
from so_clip.clip.prompts import chosen_prompts
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.batches import TrainBatches
from so_clip.data.cards.card import load_card
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.forecast.flops import CPU_ATTENTION
from so_clip.train import train_step
from tests.helpers.command import call

CPU = torch.device("cpu")


def forecast(*arguments: str) -> dict[str, Any]:
    done = call("forecast", *arguments, "device=cpu", "precision=fp32", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def flops_of_a_real_training(method: str, steps: int, *arguments: str) -> int:
    """Count the FLOPs of a real training of the embedded CLIP on the CPU."""
    overrides = [f"method={method}", f"schedule.max_steps={steps}", *arguments]
    settings = from_config(compose([*overrides, "precision=fp32", "device=cpu"]))
    card = load_card("digits")
    backbone = load(settings.backbone, settings.data.seed)
    model = assemble_model(settings, backbone, chosen_prompts("plain", card.class_names, card))
    assert model.adapter is not None
    adapter, classifier = model.adapter, model.classifier
    # Black images, 4 of each digit: an epoch of SO's schedule has batches of 32 and 8 images.
    side, generator = backbone.image_size, torch.Generator().manual_seed(1)
    images = [torch.zeros(3, side, side, dtype=torch.uint8) for _ in range(40)]
    labels = [label for label in range(10) for _ in range(4)]
    schedule = settings.schedule
    batches = TrainBatches(
        images,
        labels,
        schedule.batch_size,
        side,
        generator,
        CPU,
        drop_last=schedule.drop_last,
        crops=schedule.crops,
    )
    adapter.start(classifier, FewShotEmbeddings(classifier, batches, model.precision, 1))
    classifier.classes()  # the zero-shot evaluation has computed those of a frozen text tower
    optimizer = build_optimizer(settings.method.optimizer, model)
    step = total = 0
    while step < steps:
        for batch in batches.epoch():
            step += 1
            if step > steps:
                break
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counts:
                train_step(
                    classifier,
                    *batch,
                    optimizer=optimizer,
                    precision=model.precision,
                    penalty=partial(adapter.penalty, classifier),
                )
                adapter.after_step(classifier, step)
            total += counts.get_total_flops()
    return total


@pytest.mark.slow
def test_the_second_stage_has_its_own_flops() -> None:
    arguments = ("adapter.first_stage=0.5",)
    real = flops_of_a_real_training("two_stage", 7, *arguments)
    figures = forecast("method=two_stage", "shots=4", "schedule.max_steps=7", *arguments)
    assert figures["training_flops"] == pytest.approx(real, rel=1e-3)
    # Three steps of the first stage, of 32, 8 and 32 images; four of frozen towers.
    assert figures["training_flops"] < 0.7 * 5 * figures["flops_per_step"]


@pytest.mark.slow
def test_a_training_that_ends_in_its_first_stage_has_no_second_stage() -> None:
    figures = forecast("method=two_stage", "shots=4", "schedule.max_steps=1")
    assert figures["training_flops"] == figures["flops_per_step"]


@pytest.mark.slow
def test_a_penalty_is_part_of_a_step() -> None:
    arguments = ("adapter.position=top", "adapter.warmup=0.5", "adapter.final=0.4")
    real = flops_of_a_real_training("adalora", 3, *arguments)
    figures = forecast("method=adalora", "shots=4", "schedule.max_steps=3", *arguments)
    assert figures["training_flops"] == pytest.approx(real, rel=1e-3)
    arguments = ("adapter.position=top", "adapter.orthogonality=0")
    free = forecast("method=adalora", "shots=4", "schedule.max_steps=3", *arguments)
    assert free["flops_per_step"] < figures["flops_per_step"] < 1.1 * free["flops_per_step"]
    assert free["forward_flops_per_step"] == figures["forward_flops_per_step"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clap", "cocoop", "linear_probe", "taskres"])
def test_the_flops_of_other_adapters_are_those_of_a_real_training(method: str) -> None:
    real = flops_of_a_real_training(method, 2)
    figures = forecast(f"method={method}", "shots=4", "schedule.max_steps=2")
    assert figures["training_flops"] == pytest.approx(real, rel=1e-3)
