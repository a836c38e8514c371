"""The adapter file of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from so_clip.adapters.about import About, Base, LowRank, PixelRecord
from so_clip.adapters.before import Before, added_tensors
from so_clip.adapters.change import Change
from so_clip.adapters.file import SavedAdapter, saved_adapter
from so_clip.adapters.file import save as save_adapter
from so_clip.checks import AutoFlag
from so_clip.clip.loading.architecture_names import is_place, without_path
from so_clip.clip.loading.sources import content_sha256
from so_clip.clip.pixels import preprocessing_of
from so_clip.config.settings import AUTO, Settings
from so_clip.data.run_data import Data
from so_clip.data.user.prompt_file import is_prompt_file
from so_clip.errors import note
from so_clip.fingerprint import counting_options
from so_clip.methods.model import Model
from so_clip.results.run_files import ADAPTER_FILE
from so_clip.results.run_folder import RunFolder

MIB = 2**20
# save=auto keeps files up to this size.
AUTO_MIB = 64


def most_bytes(save: AutoFlag) -> float:
    """Return the size of the largest file that `save` allows."""
    if save == AUTO:
        return AUTO_MIB * MIB
    return math.inf if save else 0


def changes_to_save(before: Before, save: AutoFlag) -> dict[str, Change] | None:
    """Return what training changed in the base; None if `save` does not allow to save it."""
    if save is False:
        return None
    changes, nbytes = before.changes(most_bytes(save))
    return changes if nbytes <= most_bytes(save) else None


def write_adapter(folder: RunFolder, save: AutoFlag, adapter: SavedAdapter | None) -> float | None:
    """Write the adapter file of a run, if `save` allows it.

    Args:
        folder: of the run.
        save: auto | true | false; see AUTO_MIB.
        adapter: of the run; None if `changes_to_save` returned None.

    Returns:
        Its size in MiB; None if no file is written. With auto, a note says so.
    """
    if save is False:
        return None
    if adapter is not None and adapter.nbytes <= most_bytes(save):
        folder.check_in_place()
        save_adapter(adapter, folder.path / ADAPTER_FILE)
        return adapter.nbytes / MIB
    note(
        f"{folder.path}: the adapted weights take more than {AUTO_MIB} MiB, so save=auto writes no "
        f"{ADAPTER_FILE}. save=true writes it."
    )
    return None


def adapter_of_run(
    settings: Settings,
    data: Data,
    model: Model,
    changes: dict[str, Change],
    *,
    fingerprint: str,
    temperature: float | None = None,
    calibrated_on: int = 0,
) -> SavedAdapter:
    """Return the adapter of a finished run.

    Args:
        settings, data, model: of the run; the model is adapted.
        changes: of the base's tensors, since before training.
        fingerprint: of the run.
        temperature, calibrated_on: see About.
    """
    adapter, classifier = model.adapter, model.classifier
    updates = [] if adapter is None else adapter.low_rank_updates(classifier)
    state = classifier.backbone.model.state_dict()
    added = added_tensors(model)
    names, described = data.splits.class_names, data.card.descriptions
    about = About(
        base=_base(settings, model),
        dataset=settings.data.dataset,
        class_names=tuple(names),
        templates=classifier.templates,
        descriptions=None if described is None else tuple(described[name] for name in names),
        method=settings.method.name,
        method_title=settings.method.title,
        settings=options_of(settings),
        weights_only=is_weights_only(model, added, updates),
        class_bound=adapter is not None and adapter.class_bound,
        precision=model.precision.name,
        evaluation_precision=settings.evaluation_precision,
        run_fingerprint=fingerprint,
        temperature=temperature,
        calibrated_on=calibrated_on,
        low_rank=tuple(
            LowRank(**vars(update), shape=tuple(state[update.tensor].shape)) for update in updates
        ),
    )
    return saved_adapter(about, changes, added)


def is_weights_only(model: Model, added: Mapping[str, Tensor], updates: Sequence[Any]) -> bool:
    """Return whether changes and low-rank updates describe the whole adapted model.

    Added tensors then are factors, or were merged into rewritten weights.
    """
    adapter = model.adapter
    if adapter is None or not added:
        return adapter is None or adapter.plain
    return adapter.plain and bool(updates or adapter.rewritten(model.classifier))


def _base(settings: Settings, model: Model) -> Base:
    backbone, choice = model.classifier.backbone, settings.backbone
    name = without_path(choice.architecture)
    own = is_place(choice.architecture) and choice.checkpoint is None
    weights = "its own" if own else choice.pretrained or "other"
    return Base(
        architecture=name,
        # With a checkpoint, the tag names other weights than the loaded ones.
        pretrained=None if choice.checkpoint else choice.pretrained,
        weights_sha256=model.weights_sha256,
        logit_scale=backbone.logit_scale,
        quick_gelu=bool(backbone.architecture.get("quick_gelu")),
        description=f"{name} ({weights} weights)",
        pixels=PixelRecord.model_validate(preprocessing_of(backbone).record()),
        place_sha256=content_sha256(choice.architecture) if is_place(choice.architecture) else None,
    )


def options_of(settings: Settings) -> dict[str, Any]:
    """Return the options that can change the result, without paths of this machine."""
    options = counting_options(settings)
    del options["transfer"]  # test sets change nothing
    if is_prompt_file(options["template"]):  # a path; the prompts are in the file
        del options["template"]
    return options
