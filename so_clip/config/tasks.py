"""Settings of a run of tasks (tasks=N): allowed options, and the length of each training."""

import copy
import hashlib
import re
from typing import Any

from omegaconf import DictConfig, open_dict

from so_clip.config.settings import Component, Settings, steps_in_epochs
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.examples import SKIP
from so_clip.errors import InputError
from so_clip.system.torchrun import processes

# A schedule whose steps follow from the number of training images.
_IN_EPOCHS = re.compile(r"\s*\$\{epochs:")
# More images than any task has, so that an epoch is one step.
_ALL_IMAGES = 2**40
# Adapter options that hold the steps of the whole training (adapter.steps: two_stage).
_STEP_OPTIONS = ("steps", "total_steps")


def with_tasks(settings: Settings, config: DictConfig) -> Settings:
    """Return the settings with `task_epochs`, checked for tasks.

    Args:
        settings: as parsed.
        config: as Hydra composes it; its interpolations say whether steps follow from epochs.

    Raises:
        InputError: an option cannot go with tasks, or belongs to tasks and there are none.
    """
    if not settings.data.tasks:
        _check_without_tasks(settings)
        return settings
    _check(settings)
    return settings.model_copy(update={"task_epochs": _epochs(config) if settings.trains else None})


def _check_without_tasks(settings: Settings) -> None:
    given, usual = settings.episodes.model_dump(), type(settings.episodes)().model_dump()
    for name, value in given.items():
        if value != usual[name]:
            shown = list(value) if isinstance(value, tuple) else value
            raise InputError(
                f"episodes.{name}={shown}: belongs to sampled tasks, and there are none. Add "
                "tasks=600, or leave it out."
            )


def _check(settings: Settings) -> None:
    """Refuse options that mean nothing for tasks."""
    data, evaluation = settings.data, settings.evaluation
    start = f"with tasks={data.tasks}"
    each = "each task adapts a model of its own"
    refused = [
        (settings.placement.save is True, "save=true", f"{each}, and none is kept"),
        (
            evaluation.keep_logits is True,
            "evaluation.keep_logits=true",
            f"{each} on its own classes, and no logits are kept",
        ),
        (
            bool(evaluation.every_steps),
            f"evaluation.every_steps={evaluation.every_steps}",
            "a curve is about one training",
        ),
        (
            data.protocol == BASE_TO_NEW,
            f"protocol={BASE_TO_NEW}",
            "tasks are drawn from all classes",
        ),
        (bool(data.transfer), f"transfer=[{','.join(data.transfer)}]", each),
        (
            data.imbalance is not None,
            f"imbalance={data.imbalance}",
            "uneven shots of tasks are episodes.varied_shots=true",
        ),
        (
            data.on_corrupt == SKIP,
            "on_corrupt=skip",
            "an image that cannot be decoded stops the run. `python -m so_clip doctor` lists such "
            "images; give a list without them",
        ),
    ]
    for is_given, option, reason in refused:
        if is_given:
            raise InputError(f"{option} {start}: {reason}. Leave it out, or run without tasks.")
    if processes() > 1:
        raise InputError(
            f"tasks={data.tasks}: torchrun's {processes()} processes train one model together, and "
            "tasks run in one process. Leave out torchrun."
        )


def _epochs(config: DictConfig) -> int | None:
    """Return the epochs of a schedule that is given in epochs; None for one in steps."""
    schedule: Any = config["schedule"]
    node = schedule._get_node("max_steps")
    if not _IN_EPOCHS.match(str(node._value())):
        return None
    config = copy.deepcopy(config)
    with open_dict(config):
        config["schedule"]["batch_size"] = _ALL_IMAGES
    return int(config["schedule"]["max_steps"])


def settings_of_task(settings: Settings, number: int, images: int) -> Settings:
    """Return the settings of one task, as those of an ordinary run on its images.

    Every seed of the run (seed, adapter.seed, optimizer.seed) becomes `task_seed` of it. A
    schedule in epochs counts the task's images.

    Args:
        settings: of the run.
        number: of the task.
        images: its few-shot images.
    """
    schedule, steps = settings.schedule, settings.schedule.max_steps
    if settings.task_epochs is not None:
        steps = steps_in_epochs(
            settings.task_epochs,
            images,
            batch_size=schedule.batch_size,
            drop_last=schedule.drop_last,
        )

    def of_task(component: Component | None) -> Component | None:
        if component is None:
            return None
        options = dict(component.options)
        if type(options.get("seed")) is int:
            options["seed"] = task_seed(options["seed"], number)
        for name in _STEP_OPTIONS:
            if options.get(name) == schedule.max_steps:
                options[name] = steps
        return component.model_copy(update={"options": options})

    method = settings.method
    update = {"adapter": of_task(method.adapter), "optimizer": of_task(method.optimizer)}
    seed = task_seed(settings.data.seed, number)
    return settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"seed": seed, "tasks": 0}),
            "method": method.model_copy(update=update),
            "schedule": schedule.model_copy(update={"max_steps": steps}),
            "task_epochs": None,
        }
    )


def task_seed(seed: int, number: int) -> int:
    """Return the seed of a task's training: the first 31 bits of SHA-256("SEED/tasks/NUMBER")."""
    digest = hashlib.sha256(f"{seed}/tasks/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
