"""Accuracies of the direct mode on drawn tasks: merged once from the few-shot images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.data.episodes.sampler import EpisodeSampler
from so_clip.meta.images import EpisodeImages, TaskImages
from so_clip.meta.records import Accuracies, add_accuracies
from so_clip.meta.sources import Source
from so_clip.runtime.precision import Precision
from so_clip.smat.direct import direct_accuracies
from so_clip.smat.model import Smat
from so_clip.smat.task import Task


class TaskAccuracies:
    """Measures states of the experts on tasks. Nothing here has a gradient.

    Args:
        backbone: on its device.
        images: of the datasets.
        class_KD: the text embeddings of each dataset's classes, by its name; empty for an encoder
            without text.
        precision: of the image tower.
        tick: called after each task.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: EpisodeImages,
        class_KD: Mapping[str, Tensor],
        precision: Precision,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._backbone, self._images, self._class_KD = backbone, images, class_KD
        self._precision, self._tick = precision, tick

    def of_tasks(
        self, smat: Smat, sampler: EpisodeSampler, numbers: range, title: str
    ) -> Iterator[dict[str, float]]:
        """Yield the accuracies of each task by head, in percent; see `direct_accuracies`.

        Args:
            smat: the state.
            sampler: draws the tasks.
            numbers: of the tasks.
            title: of the progress bar.
        """
        draws = map(sampler.draw, numbers)
        bar: dict[str, Any] = {
            "unit": "task",
            "leave": False,
            "dynamic_ncols": True,
            "disable": None,
        }
        with closing(self._images.squares(draws, self._backbone.pixels)) as tasks:
            for images in tqdm(tasks, title, len(numbers), **bar):
                task = task_of(images, self._class_KD)
                yield direct_accuracies(self._backbone, smat, task, self._precision)
                self._tick()

    def of_samplers(
        self, smat: Smat, samplers: Mapping[str, EpisodeSampler], tasks: int
    ) -> dict[str, Accuracies]:
        """Return the accuracies of the first tasks of each dataset's sampler, by head."""
        found: dict[str, Accuracies] = {}
        for name, sampler in samplers.items():
            by_head: Accuracies = {}
            for accuracies in self.of_tasks(smat, sampler, range(tasks), f"validate on {name}"):
                add_accuracies(by_head, accuracies)
            found[name] = by_head
        return found


def task_of(images: TaskImages, class_KD: Mapping[str, Tensor]) -> Task:
    """Return a drawn task as tensors.

    Args:
        images: of the task, on the device.
        class_KD: text embeddings of each dataset's classes; empty for an encoder without text.
    """
    draw, device = images.draw, images.images_SCHW.device
    texts_KD = class_KD.get(draw.source)
    labels_S, labels_Q = (
        torch.tensor([example.label for example in examples], device=device)
        for examples in (draw.few_shot, draw.queries)
    )
    return Task(
        images.images_SCHW,
        labels_S,
        images.images_QCHW,
        labels_Q,
        None if texts_KD is None else texts_KD[list(draw.labels)],
        len(draw.labels),
    )


@torch.no_grad()
def class_texts(
    backbone: Backbone, datasets: Iterable[Source], template: str, device: torch.device
) -> dict[str, Tensor]:
    """Return class_KD of each dataset by the frozen text tower; nothing without a tower."""
    if not backbone.has_text:
        return {}
    found = {}
    for source in datasets:
        prompts = source.prompts(template)
        classifier = Classifier(
            backbone,
            backbone.tokenize(prompts.texts),
            prompts_per_class=prompts.per_class,
            templates=prompts.templates,
        )
        found[source.name] = classifier.to(device).classes().clone()
    return found
