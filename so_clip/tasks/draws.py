"""The tasks of a run: which classes and images each of them has. Without torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from so_clip.config.settings import Settings
from so_clip.data.episodes.pools import class_pools
from so_clip.data.episodes.sampler import EpisodeDraw, EpisodeSampler
from so_clip.data.examples import Splits
from so_clip.data.fewshot import FewShot
from so_clip.data.run_data import Data
from so_clip.errors import note

# Gives these tasks other random numbers than the episodes of meta-training.
PURPOSE = "tasks"


def draw_tasks(settings: Settings, splits: Splits) -> list[EpisodeDraw]:
    """Return the tasks of a run, in order.

    Few-shot images come from the train list, query images from the test list.

    Args:
        settings: of the run.
        splits: the lists of its dataset.

    Raises:
        InputError: there are too few classes or images for a task.
    """
    choice, options = settings.data, settings.episodes
    pools = class_pools(splits, half="all", query_split="test")
    shots = None if options.varied_shots else choice.shots
    sampler = EpisodeSampler([pools], options, choice.seed, PURPOSE, shots)
    for remark in pools.notes:
        note(f"tasks={choice.tasks}: {remark}.")
    return [sampler.draw(number) for number in range(choice.tasks)]


def data_of_task(task: EpisodeDraw, data: Data) -> Data:
    """Return a task as the data of a run: its classes, few-shot images and query images.

    Args:
        task: as drawn.
        data: of the whole run.
    """
    splits, few_shot = data.splits, [*task.few_shot]
    names = [splits.class_names[label] for label in task.labels]
    lists = replace(
        splits, train=few_shot, val=[], test=[*task.queries], class_names=names, parent_labels=()
    )
    shots = max(len(task.few_shot) // len(task.labels), 1)
    drawn = FewShot(few_shot, [], splits.dataset, shots, task.number, PURPOSE)
    return Data(data.card, lists, data.images, drawn)


def draws_sha256(tasks: Sequence[EpisodeDraw]) -> str:
    """Return the SHA-256 of all tasks' classes and images, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps(_lists(task), separators=(",", ":")).encode())
    return digest.hexdigest()


def draws_json(settings: Settings, tasks: Sequence[EpisodeDraw], whole: bool) -> dict[str, Any]:
    """Return the document of a run's `fewshot.json`.

    Args:
        settings: of the run.
        tasks: its tasks.
        whole: with the lists of all images. They are long, and follow from the other values.
    """
    choice = settings.data
    lists = {"draws": [_lists(task) for task in tasks]} if whole else {}
    return {
        "dataset": choice.dataset,
        "shots": choice.shots,
        "seed": choice.seed,
        "tasks": choice.tasks,
        "episodes": settings.episodes.model_dump(mode="json"),
        **lists,
        "sha256": draws_sha256(tasks),
    }


def _lists(task: EpisodeDraw) -> dict[str, Any]:
    """Return the labels of a task's classes in the dataset, and its images as [path, label]."""
    return {
        "task": task.number,
        "labels": list(task.labels),
        "train": [list(example) for example in task.few_shot],
        "queries": [list(example) for example in task.queries],
    }
