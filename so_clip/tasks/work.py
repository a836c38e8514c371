"""One task: adapt a copy of the loaded model to its few-shot images, and test it on its queries.

Tensor names end in their shape: N test images of the dataset, Q query images, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from so_clip.adaptation.adapting import Adapting
from so_clip.adaptation.records import NoRecords
from so_clip.build import assemble_model, build_optimizer, few_shot_batches
from so_clip.clip.backbone import Backbone
from so_clip.clip.prompts import chosen_prompts
from so_clip.config.settings import Settings
from so_clip.config.tasks import settings_of_task
from so_clip.data.episodes.sampler import EpisodeDraw
from so_clip.data.run_data import Data, TestSet
from so_clip.evaluate.build import build_evaluator
from so_clip.evaluate.evaluator import Evaluator
from so_clip.methods.model import Model
from so_clip.results.progress import Progress
from so_clip.runtime.device import pick_device
from so_clip.tasks.draws import data_of_task
from so_clip.tasks.finished import TaskResult
from so_clip.train import TrainingDiverged


@dataclass(frozen=True, eq=False)
class Loaded:
    """The model that every task begins with, and the run that it belongs to.

    Attributes:
        settings, data: of the run.
        backbone: as loaded, in the host's memory. No task changes it.
        weights_sha256: of the backbone.
    """

    settings: Settings
    data: Data
    backbone: Backbone
    weights_sha256: str

    def of_task(self, task: EpisodeDraw) -> tuple[Settings, Data, Model]:
        """Return a task's settings and data, and its model: a copy of the backbone."""
        settings = settings_of_task(self.settings, task.number, len(task.few_shot))
        data = data_of_task(task, self.data)
        prompts = chosen_prompts(settings.data.template, data.splits.class_names, data.card)
        device = pick_device(settings.placement.device)
        backbone = self.backbone.copy()
        model = assemble_model(settings, backbone, prompts, device, self.weights_sha256)
        return settings, data, model

    def features(self, tasks: Sequence[EpisodeDraw], progress: Progress) -> "Features":
        """Encode the query images of all tasks with the loaded image tower, each image once.

        If the tasks have most of the test images, all test images are encoded: the stored features
        then serve ordinary runs, too. Options of the method that cannot be used are refused first.
        """
        settings, data, model = self.of_task(tasks[0])
        if settings.trains:
            build_optimizer(settings.method.optimizer, model)
        drawn = {path for task in tasks for path, _ in task.queries}
        test = self.data.splits.test
        chosen = [example for example in test if example.path in drawn]
        examples = test if 2 * len(chosen) >= len(test) else chosen
        data = replace(data, splits=replace(data.splits, test=examples))
        evaluator = _evaluator(settings, data, model)
        evaluator.tick = progress.tick
        rows = {example.path: row for row, example in enumerate(examples)}
        is_used = self.backbone.has_text or not model.classifier.trains("vision")
        image_ND = evaluator.loaded_features() if is_used else None
        return Features(rows, image_ND, evaluator.from_cache, evaluator.seconds)


@dataclass(frozen=True, eq=False)
class Features:
    """image_ND of the loaded image tower.

    Attributes:
        rows: the row of each image, by its path.
        image_ND: on the CPU; None if nothing is classified before the image tower changes.
        from_cache: whether they were stored by another run.
        seconds: spent on them.
    """

    rows: Mapping[str, int]
    image_ND: Tensor | None
    from_cache: bool
    seconds: float

    def of(self, task: EpisodeDraw) -> Tensor | None:
        """Return image_QD of a task's query images."""
        if self.image_ND is None:
            return None
        return self.image_ND[torch.tensor([self.rows[path] for path, _ in task.queries])]


def do_task(
    loaded: Loaded,
    features: Features,
    task: EpisodeDraw,
    progress: Progress,
    measures_evaluation: bool,
) -> TaskResult:
    """Adapt a copy of the loaded model to one task, and test both on its queries.

    Args:
        loaded: the model before any task.
        features: of all query images.
        task: as drawn.
        progress: records that the run is alive.
        measures_evaluation: measure the memory of evaluation, if the method trains nothing.

    Raises:
        TrainingDiverged: a loss is not finite; the message names the task.
        InputError: an image cannot be read, or the method cannot take the task.
    """
    settings, data, model = loaded.of_task(task)
    batches = few_shot_batches(settings, data, model, progress=False) if settings.adapts else None
    work = Adapting(settings, model, batches, NoRecords())
    evaluator = _evaluator(settings, data, model)
    evaluator.cache = evaluator.stream.cache = None  # a task's list of images comes once
    evaluator.known_ND, evaluator.shows_bars = features.of(task), False
    evaluator.tick = progress.tick
    zero_shot = adapted = evaluator.zero_shot()  # None without a text tower
    steps, train_seconds = 0, 0.0
    if settings.adapts:
        try:
            adaptation = work.adapt(progress.part())
        except TrainingDiverged as error:
            raise TrainingDiverged(f"task {task.number}: {error}", error.history) from error
        steps, train_seconds = adaptation.history.steps, adaptation.train_seconds
        adapted = evaluator.adapted()
    assert adapted is not None  # a backbone without text is refused without an adapter
    measures = settings.trains or measures_evaluation
    return TaskResult(
        task=task.number,
        ways=len(task.labels),
        few_shot_images=len(task.few_shot),
        queries=len(task.queries),
        zero_shot_accuracy_percent=zero_shot.accuracy_percent if zero_shot else None,
        accuracy_percent=adapted.accuracy_percent,
        steps=steps,
        train_seconds=train_seconds,
        evaluate_seconds=evaluator.seconds,
        memory=work.memory(evaluator) if measures else {},
        trainable_parameters=sum(value.numel() for value in model.parameters.values()),
    )


def _evaluator(settings: Settings, data: Data, model: Model) -> Evaluator:
    """Return an evaluator of a task's own classes."""
    test_set = TestSet("", data.card, data.splits, data.images)
    return build_evaluator(settings, test_set, model, other_classes=False)
