"""The datasets of a meta-training and the tasks drawn from them. This module needs no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from so_clip.data.episodes.pools import ClassPools, class_pools
from so_clip.data.episodes.sampler import EpisodeSampler
from so_clip.data.images import ImageSource
from so_clip.errors import note
from so_clip.meta.settings import MetaSettings
from so_clip.meta.sources import Source, open_datasets

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class MetaTasks:
    """Opened datasets, and a sampler for each use.

    Attributes:
        sources, targets: the datasets.
        train: tasks of the base halves of all sources.
        validation: tasks of the novel half of each source, by its name; empty without validation.
        test: tasks of all classes of each target, by its name.
    """

    sources: tuple[Source, ...]
    targets: tuple[Source, ...]
    train: EpisodeSampler
    validation: Mapping[str, EpisodeSampler]
    test: Mapping[str, EpisodeSampler]

    @property
    def datasets(self) -> tuple[Source, ...]:
        """Sources and targets; a dataset that is both is there once."""
        return tuple({source.name: source for source in (*self.sources, *self.targets)}.values())

    @property
    def images(self) -> dict[str, ImageSource]:
        """The images of each dataset, by its name."""
        return {source.name: source.images for source in self.datasets}


def gather_tasks(settings: MetaSettings) -> MetaTasks:
    """Read the lists of all datasets, check that every image is there, and prepare the draws.

    No task is drawn here.

    Raises:
        InputError: a dataset or an image is missing, a dataset has too few classes, or a dataset is
            both source and target. The message names it.
    """
    data = settings.data
    sources, targets = open_datasets(
        data.sources,
        settings.targets,
        data_root=data.data_root,
        cards_dir=data.cards_dir,
        template=data.template,
        allow_overlap=data.allow_overlap,
    )
    base = [class_pools(source.splits, "base", None) for source in sources]
    novel = {
        source.name: class_pools(source.splits, "novel", None)
        for source in (sources if data.validation_tasks else ())
    }
    tested = {target.name: class_pools(target.splits, "all", "test") for target in targets}
    _note_all([*base, *novel.values(), *tested.values()])
    return MetaTasks(
        tuple(sources),
        tuple(targets),
        _sampler(base, settings, TRAIN),
        {name: _sampler([pools], settings, VALIDATION) for name, pools in novel.items()},
        {name: _sampler([pools], settings, TEST) for name, pools in tested.items()},
    )


def _sampler(pools: Iterable[ClassPools], settings: MetaSettings, purpose: str) -> EpisodeSampler:
    return EpisodeSampler(
        [*pools], settings.episodes, settings.data.seed, purpose, shots=settings.shots
    )


def _note_all(all_pools: Iterable[ClassPools]) -> None:
    for pools in all_pools:
        for text in pools.notes:
            note(f"{pools.title}: {text}.")
