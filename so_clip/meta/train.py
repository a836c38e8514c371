"""The loop of a meta-training: tasks in, updates, validation. It knows no dataset and no folder."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from so_clip.checkpoint import NoCheckpoint
from so_clip.data.episodes.sampler import EpisodeSampler
from so_clip.data.transforms import RandomResizedCrop
from so_clip.meta.evaluation import task_of
from so_clip.meta.images import EpisodeImages
from so_clip.meta.records import TrainingRecords
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.smat.training import MetaTraining

# Peak memory is measured over the first tasks.
WATCHED_TASKS = 12


@dataclass(frozen=True)
class MetaLoop:
    """The objects and callbacks of a meta-training.

    Attributes:
        training: learns from tasks; its counter chooses the next task.
        records: of losses, sparsities and validation.
        sampler: draws the tasks.
        images: reads their images.
        crop: of training images.
        seed: of the crops.
        class_KD: text embeddings of each dataset's classes; empty for an encoder without text.
        validate: called when a validation is due.
        validate_every: tasks between two validations; 0: none.
        peak_memory: entered around the first tasks.
        report: called with the number of tasks and the last loss that was read, or None.
        checkpoint: saves this training.
    """

    training: MetaTraining
    records: TrainingRecords
    sampler: EpisodeSampler
    images: EpisodeImages
    crop: RandomResizedCrop
    seed: int
    class_KD: Mapping[str, Tensor]
    validate: Callable[[], None]
    validate_every: int
    peak_memory: PeakMemory
    report: Callable[[int, float | None], None]
    checkpoint: NoCheckpoint

    def is_validation_due(self) -> bool:
        """Return whether the last update passed a multiple of `validate_every`, or was the last."""
        tasks, options = self.training.tasks, self.training.options
        if not self.validate_every:
            return False
        before = tasks - options.tasks_per_update
        passed = tasks // self.validate_every > before // self.validate_every
        return passed or tasks >= options.tasks


def train(loop: MetaLoop) -> None:
    """Learn from the tasks that are left of the planned ones.

    Raises:
        RunFailed: a loss is not finite.
        InputError: an image cannot be read.
    """
    training, options = loop.training, loop.training.options
    draws = map(loop.sampler.draw, range(training.tasks, options.tasks))
    with (
        tqdm(
            None, "meta-train", options.tasks, unit="task", dynamic_ncols=True, disable=None
        ) as bar,
        closing(loop.images.cropped(draws, loop.crop, loop.seed)) as tasks,
        ExitStack() as watched,
    ):
        bar.initial = bar.n = training.tasks
        is_watched = training.tasks < WATCHED_TASKS
        if is_watched:
            watched.enter_context(loop.peak_memory)
        for images in tasks:
            loop.records.add(training.learn(task_of(images, loop.class_KD)))
            bar.update()
            loop.report(training.tasks, loop.records.last_loss)
            if training.tasks % options.tasks_per_update:
                continue
            loop.records.after_update()
            bar.set_postfix(loss=f"{loop.records.last_loss:.4f}", refresh=False)
            if is_watched and training.tasks >= WATCHED_TASKS:
                watched.close()
                is_watched = False
            if loop.is_validation_due():
                with loop.peak_memory.paused() if is_watched else nullcontext():
                    loop.validate()
            if not is_watched:
                loop.checkpoint.after_step()
