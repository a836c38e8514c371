"""Settings of sampled tasks: what goes with them, and each task's seeds and steps."""

import hashlib

import pytest

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.config.tasks import settings_of_task, task_seed
from so_clip.errors import InputError


def _settings(*words: str) -> Settings:
    return from_config(compose(["evaluation.workers=0", *words]))


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tasks=1", "tasks=1: a 95 % interval needs two tasks"),
        ("tasks=-2", "tasks=-2: must be 0 or more"),
        ("tasks=1000000000000", "tasks=1000000000000: must be 100000 or less"),
        ("tasks=2 save=true", "save=true with tasks=2: each task adapts a model of its own"),
        ("tasks=2 evaluation.keep_logits=true", "evaluation.keep_logits=true with tasks=2"),
        ("tasks=2 evaluation.every_steps=5", "evaluation.every_steps=5 with tasks=2"),
        ("tasks=2 protocol=base_to_new", "protocol=base_to_new with tasks=2"),
        ("tasks=2 transfer=[dtd]", "transfer=[dtd] with tasks=2"),
        ("tasks=2 imbalance=0.5", "episodes.varied_shots=true"),
        ("tasks=2 on_corrupt=skip", "on_corrupt=skip with tasks=2"),
        ("episodes.ways=[3,5]", "episodes.ways=[3, 5]: belongs to sampled tasks"),
        ("tasks=2 episodes.ways=[5,3]", "episodes.ways=[5,3]"),
    ],
)
def test_what_does_not_go_with_tasks_is_refused_by_name(words, message):
    with pytest.raises(InputError) as caught:
        _settings(*words.split())
    assert message in str(caught.value)


def test_several_processes_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun's 2 processes"):
        _settings("tasks=2")


def test_a_task_has_the_settings_of_an_ordinary_run_with_its_seed():
    words = ("method=clip_lora", "shots=2", "optimizer.lr=1e-3", "schedule.max_steps=7")
    of_task = settings_of_task(_settings("tasks=3", "seed=5", *words), 2, 8)
    assert of_task.record() == _settings(f"seed={task_seed(5, 2)}", *words).record()


def test_every_seed_of_a_run_follows_the_same_rule():
    expected = int(hashlib.sha256(b"9/tasks/4").hexdigest()[:8], 16) // 2
    assert task_seed(9, 4) == expected
    of_task = settings_of_task(_settings("tasks=3", "method=so", "optimizer.seed=9"), 4, 8)
    assert of_task.method.optimizer.options["seed"] == expected
    assert of_task.data.seed == task_seed(1, 4) != expected


@pytest.mark.parametrize(
    ("words", "epochs", "images", "steps"),
    [
        ("method=coop shots=2", 100, 70, 200),  # without an incomplete batch of 32
        ("method=coop shots=2", 100, 6, 100),
        ("method=tip_adapter_f shots=2", 20, 300, 40),
        ("method=coop shots=2 schedule.max_steps=9", None, 70, 9),
        ("method=clip_lora shots=2", None, 70, 1000),
    ],
)
def test_a_schedule_in_epochs_counts_the_images_of_each_task(words, epochs, images, steps):
    settings = _settings("tasks=3", *words.split())
    assert settings.task_epochs == epochs
    assert settings_of_task(settings, 0, images).schedule.max_steps == steps
    recorded = settings.record()["schedule"]["max_steps"]
    assert recorded == (steps if epochs is None else f"{epochs} epochs")


def test_the_stages_of_a_method_follow_the_steps_of_the_task():
    settings = _settings("tasks=3", "method=two_stage", "schedule=coop", "shots=2")
    of_task = settings_of_task(settings, 1, 70)
    assert of_task.method.adapter.options["steps"] == of_task.schedule.max_steps == 200
