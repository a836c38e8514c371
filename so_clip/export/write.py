"""Export an adapted model: the files of a library, the classes and the card, and the upload."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from so_clip.adapters import Restored, SavedAdapter
from so_clip.adapters.about import LowRank
from so_clip.clip.classifier import Classifier
from so_clip.data.cards.card import USER_LAYOUTS, load_card
from so_clip.errors import InputError
from so_clip.export.card import USER_IMAGES, Loading, Origin, card
from so_clip.export.files import (
    CARD_FILE,
    CLASSES_FILE,
    CLASSIFIER_FILE,
    check_free,
    save_tensors,
    staged,
)
from so_clip.export.linear_classes import LinearClasses, linear_classes
from so_clip.export.peft_folder import FUSED, WAY_OUT, LowRankUpdate, library, save_kind, save_lora
from so_clip.export.push import Repository, push
from so_clip.export.sizes import OPEN_CLIP, OPENAI, PEFT, check_fits
from so_clip.export.targets import (
    Content,
    Plain,
    open_clip_content,
    openai_content,
    peft_content,
    plain_state,
    transformers_content,
)
from so_clip.methods.adapter import Adapter
from so_clip.methods.peft_adapter import Peft
from so_clip.results.run_files import METRICS_FILE, read_object
from so_clip.system import atomic

COMMON_FILES = (CARD_FILE, CLASSIFIER_FILE, CLASSES_FILE)
_IN_CLASSIFIER = "backbone.model."


@dataclass(frozen=True)
class Export:
    """An adapted model in the form of a library, ready to be written.

    Attributes:
        content: the library's files.
        classes: the classifier.
        origin: for the card.
        needs_classifier: whether CLIP's own text encoder does not give the classes.
    """

    content: Content
    classes: LinearClasses
    origin: Origin
    needs_classifier: bool

    def card(self, loading: Loading) -> str:
        """Return the text of the card."""
        return card(self.origin, loading, self.needs_classifier)


def make_export(
    adapter: SavedAdapter, restored: Restored, target: str, file: str, folder: Path | None = None
) -> Export:
    """Convert an adapted model; its modules are merged into the weights, except for peft.

    Args:
        adapter: of the run.
        restored: its classifier, in float32. The classifier is not usable afterwards.
        target: one of `sizes.TARGETS`.
        file: the name of the checkpoint; "" for targets with a folder.
        folder: the run's folder, if there is one.

    Raises:
        InputError: the library cannot hold the model, or no file of weights can.
    """
    about, backbone, method = adapter.about, restored.classifier.backbone, restored.method
    check_fits(backbone.architecture, target, backbone.description)
    classes = linear_classes(restored.classifier, about.method)
    not_clip = [name.removeprefix(_IN_CLASSIFIER) for name in adapter.added]
    if target == PEFT:
        save = _peft_saver(adapter, restored.classifier, method)
    elif method is not None:
        method.merge(restored.classifier)
    plain = Plain(
        backbone,
        plain_state(backbone, not_clip),
        about.base.architecture,
        about.base.pretrained,
    )
    if target == PEFT:
        content = peft_content(plain, save)
    elif target == OPEN_CLIP:
        content = open_clip_content(plain, file)
    elif target == OPENAI:
        content = openai_content(plain, file)
    else:
        content = transformers_content(plain)
    needs_classifier = method is not None and not method.plain
    return Export(content, classes, _origin(adapter, restored, folder), needs_classifier)


def write_export(export: Export, folder: Path, force: bool = False) -> list[str]:
    """Write an export into a folder, whole or not at all.

    Args:
        export: what to write.
        folder: may exist.
        force: whether to replace files.

    Returns:
        The names of the files.

    Raises:
        InputError: a file exists, or the folder cannot be written.
    """
    names = [*export.content.names, *COMMON_FILES]
    check_free(folder, names, force)
    class_names = list(export.origin.class_names)
    with staged(folder) as staging:
        export.content.write(staging)
        save_tensors(
            staging / CLASSIFIER_FILE,
            {"weight": export.classes.weight_KD, "bias": export.classes.bias_K},
            class_names=json.dumps(class_names),
        )
        prompts = [list(texts) for texts in export.origin.prompts]
        atomic.write_json(staging / CLASSES_FILE, {"class_names": class_names, "prompts": prompts})
        atomic.write_text(staging / CARD_FILE, export.card(export.content.loading))
    return names


def push_export(export: Export, folder: Path, repository: Repository) -> str:
    """Upload a written export in one commit, and return the repository's address.

    Raises:
        InputError: the hub does not take it.
    """
    content = export.content
    files: dict[str, Path | bytes] = {
        content.hub_names.get(name, name): folder / name for name in (*content.names, *COMMON_FILES)
    }
    if content.hub_loading is not None:
        files[CARD_FILE] = export.card(content.hub_loading(repository.name)).encode()
    origin = export.origin
    return push(repository, files, f"{origin.architecture}, {origin.method}, {origin.dataset}")


def _peft_saver(
    adapter: SavedAdapter, classifier: Classifier, method: Adapter | None
) -> Callable[[Any, Path, str | None], None]:
    """Return the function that writes the adapter's files for peft.

    Raises:
        InputError: peft is missing, or has no form for the adapter.
    """
    library()
    name = adapter.about.method or adapter.about.kind
    if adapter.changes:
        raise InputError(
            f"--to {PEFT}: {name} changes CLIP's own weights, which an adapter of peft does not "
            f"hold. {WAY_OUT}"
        )
    if adapter.about.low_rank and (method is None or method.plain):
        return partial(save_lora, [_update(adapter, record) for record in adapter.about.low_rank])
    if isinstance(method, Peft):
        return partial(save_kind, method, classifier)
    raise InputError(f"--to {PEFT}: {name} is none of peft's methods. {WAY_OUT}")


def _update(adapter: SavedAdapter, record: LowRank) -> LowRankUpdate:
    """Return a low-rank update.

    Raises:
        InputError: it is of other rows than those of query, key, value or a whole matrix.
    """
    up_OR = adapter.added[record.up].float()
    if record.diagonal is not None:
        up_OR = up_OR * adapter.added[record.diagonal].float().view(1, -1)
    layer = record.tensor.removesuffix("weight").rstrip("._")
    height, (first, last) = record.shape[0], record.rows
    part, offset = divmod(first, last - first)
    is_third = layer.endswith(FUSED) and (last - first) * 3 == height and not offset
    if last - first != height and not is_third:
        raise InputError(
            f"--to {PEFT}: the update of rows {first} to {last} of {record.tensor} fits no layer "
            f"of transformers. {WAY_OUT}"
        )
    return LowRankUpdate(
        layer=layer,
        down_RI=adapter.added[record.down].float(),
        up_OR=up_OR,
        scale=record.scale,
        part=part if is_third else None,
    )


def _origin(adapter: SavedAdapter, restored: Restored, folder: Path | None) -> Origin:
    about, settings = adapter.about, adapter.about.settings
    prompts = about.prompts(restored.class_names)
    texts = iter(prompts.texts)
    metrics = {} if folder is None else read_object(folder / METRICS_FILE)
    if metrics.get("run_fingerprint") != about.run_fingerprint:
        metrics = {}
    origin = Origin(
        architecture=about.base.architecture,
        pretrained=about.base.pretrained,
        weights_sha256=about.base.weights_sha256,
        method=about.method or about.kind,
        method_title=about.method_title or about.kind,
        dataset=about.dataset,
        dataset_title=about.dataset or "unknown data",
        licence="",
        homepage="",
        shots=_whole(settings.get("shots")),
        seed=_whole(settings.get("seed")),
        class_names=restored.class_names,
        prompts=[[next(texts) for _ in range(count)] for count in prompts.per_class],
        metrics=metrics,
    )
    return _with_data(origin)


def _with_data(origin: Origin) -> Origin:
    """Add what the dataset's card says about the data."""
    if origin.dataset in USER_LAYOUTS:
        return replace(origin, dataset_title=USER_IMAGES)
    try:
        found = load_card(origin.dataset)
    except InputError:  # the user's own card, which is not part of an adapter
        return origin
    return replace(
        origin, dataset_title=found.title, licence=found.licence, homepage=found.homepage
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
