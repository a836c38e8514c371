"""A meta-training's identity: one SHA-256 over everything that can change its results."""

from pathlib import Path

from so_clip.clip.loading.architecture_names import file_name
from so_clip.data.run_data import Data, TestSet
from so_clip.fingerprint import (
    DIGITS,
    Base,
    contents_sha256,
    counting,
    identity,
    images_root,
    sha256_of,
)
from so_clip.meta.settings import NO_DIFFERENCE, MetaSettings
from so_clip.meta.tasks import MetaTasks


def meta_fingerprint(settings: MetaSettings, tasks: MetaTasks, base: Base) -> str:
    """Return the SHA-256 of options, lists, prompts and weights.

    Args:
        settings: with `auto` resolved, because its meaning depends on the machine.
        tasks: the opened datasets.
        base: the backbone as loaded.
    """
    data = settings.data
    values = counting(settings.record(), NO_DIFFERENCE, settings.backbone)
    values["backbone"]["logit_scale"] = base.logit_scale
    roots = images_root(
        [(name, None) for name in (*data.sources, *settings.targets)],
        data.data_root,
        data.cards_dir,
    )
    contents = contents_sha256(_as_data(tasks), data.template)
    return identity(sha256_of(values), roots, contents, base)


def meta_run_dir(settings: MetaSettings, fingerprint: str) -> Path:
    """Return a run's folder. The start of its name is readable, the end is unique."""
    backbone = file_name(settings.backbone.architecture)
    parts = [backbone, "smat", f"{settings.training.tasks}tasks", f"seed{settings.data.seed}"]
    return settings.placement.results_dir / "-".join([*parts, fingerprint[:DIGITS]])


def _as_data(tasks: MetaTasks) -> Data:
    """Return the datasets as those of a run: the first one and others."""
    first, *others = (
        TestSet(source.name, source.card, source.splits, source.images) for source in tasks.datasets
    )
    return Data(first.card, first.splits, first.images, None, tuple(others))
