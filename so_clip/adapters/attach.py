"""Build an adapter's method in a classifier, with the tensors of its file."""

from collections.abc import Set as AbstractSet
from pathlib import Path

import torch

from so_clip.adapters.file import SavedAdapter
from so_clip.clip.classifier import Classifier
from so_clip.config.parse import targets_of
from so_clip.config.settings import Component
from so_clip.errors import InputError, nearest, reason_of
from so_clip.methods.adapter import Adapter
from so_clip.methods.construct import make_adapter

# Options of adapters that are sizes of their tensors.
_SIZES = {"rank", "shots", "length", "frequencies"}


def attach(classifier: Classifier, adapter: SavedAdapter, config_dir: Path | None) -> Adapter:
    """Build the modules of the adapter's method in a classifier, with the saved tensors.

    The changes of the base's weights must be in the classifier already.
    """
    about = adapter.about
    if about.class_bound:
        _check_classes(classifier, adapter)
    method = make_adapter(_component(adapter, config_dir))
    before = {*classifier.state_dict()}
    method(classifier)
    resume(classifier, method, adapter, before)
    return method


def resume(
    classifier: Classifier, method: Adapter, adapter: SavedAdapter, before: AbstractSet[str]
) -> None:
    """Give the saved tensors to the modules that a method has added to a classifier.

    Args:
        classifier: with the changes of the base's weights in it.
        method: has been called.
        adapter: as `load` returns it.
        before: the names of the classifier's state dict before the call.

    Raises:
        InputError: the file has other tensors than the method.
    """
    about = adapter.about
    # Detached tensors that share memory with the parameters and buffers.
    own = {name: value for name, value in classifier.state_dict().items() if name not in before}
    for name in {*own} ^ {*adapter.added}:
        place = "lacks" if name in own else "holds"
        raise InputError(
            f"{adapter.place}: {place} {name}, and the tensors of {about.method} are others. It "
            "is damaged, or another version of peft or so_clip wrote it."
        )
    for name, value in own.items():
        if value.shape != adapter.added[name].shape:
            raise InputError(
                f"{adapter.place}: {name} has the shape {list(adapter.added[name].shape)} in place "
                f"of {list(value.shape)}. It is damaged, or belongs to other classes."
            )
    try:
        classifier.load_state_dict(dict(adapter.added), strict=False)
    except RuntimeError as error:  # a tensor of the method refuses its values
        raise InputError(f"{adapter.place}: is damaged: {reason_of(error)}.") from error
    method.resume(classifier)
    classifier.forget_classes()


def _component(adapter: SavedAdapter, config_dir: Path | None) -> Component:
    recorded = adapter.about.used.adapter or {}
    if not isinstance(recorded.get("name"), str):
        raise InputError(
            f"{adapter.place}: does not say which adapter made its tensors. It is damaged."
        )
    options = {key: value for key, value in recorded.items() if key != "name"}
    # The sizes of tensors: a damaged number must not fill the memory.
    largest = max((size for value in adapter.added.values() for size in value.shape), default=0)
    for key in _SIZES & {*options}:
        if isinstance(options[key], int) and options[key] > largest:
            raise InputError(
                f"{adapter.place}: is damaged: adapter.{key} is {options[key]}, and its tensors "
                "are smaller."
            )
    name, targets = recorded["name"], targets_of("adapter", config_dir)
    if name not in targets:
        raise InputError(
            f"{adapter.place}: adapter {name[:80]!r} is no adapter of the program."
            f"{nearest(name, targets)} Give the folder of its configuration: --config-dir FOLDER, "
            "or config_dir= in Python."
        )
    return Component(name=name, target=targets[name], options=options)


def _check_classes(classifier: Classifier, adapter: SavedAdapter) -> None:
    about = adapter.about
    tokens_PL = classifier.backbone.prompt_tokens(about.prompts().texts)
    if not torch.equal(tokens_PL, classifier.tokens_PL.cpu()):
        raise InputError(
            f"{adapter.place}: what {about.method} trained belongs to its "
            f"{len(about.class_names)} classes, and the classifier has {classifier.class_count} "
            "classes with other prompts. Use the adapter's own classes."
        )
