"""Put a saved adapter into the model of a run, in place of training."""

from so_clip.adapters.apply import check_tensors, not_finite
from so_clip.adapters.attach import resume
from so_clip.adapters.file import SavedAdapter
from so_clip.errors import InputError
from so_clip.methods.model import Model


def open_changed(model: Model, adapter: SavedAdapter) -> None:
    """Open the parameters that an adapter without a method changes.

    An evaluator then sees that features of the loaded model are not those of the adapted one.
    """
    if model.adapter is None:
        for name, parameter in model.classifier.backbone.model.named_parameters():
            parameter.requires_grad_(name in adapter.changes)


def finish_model(model: Model, adapter: SavedAdapter) -> None:
    """Turn a run's model, as loaded, into the adapted model.

    Args:
        model: of the adapter's base, with its method.
        adapter: as `load` returns it.

    Raises:
        InputError: the file does not fit the model.
    """
    classifier, method = model.classifier, model.adapter
    tensors = classifier.backbone.model.state_dict()
    check_tensors(tensors, adapter)
    for name, change in adapter.changes.items():
        if not change.write_into(tensors[name]):
            raise not_finite(adapter, name)
    if method is not None:
        resume(classifier, method, adapter, model.base_names)
    elif adapter.added:
        raise InputError(
            f"{adapter.place}: holds {next(iter(adapter.added))}, and names no method that adds "
            "it. It is damaged."
        )
    classifier.forget_classes()
