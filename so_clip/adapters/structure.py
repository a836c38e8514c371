"""The modules, parameters, buffers and hooks of a classifier, to put them back."""

from typing import Any

from so_clip.clip.classifier import Classifier


class Structure:
    """The modules, parameters, buffers and hooks of a classifier, by their places."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        # torch keeps modules, parameters, buffers and hooks in dicts and sets.
        self._attributes = [
            (module, {name: (value, _content(value)) for name, value in vars(module).items()})
            for module in classifier.modules()
        ]
        self._opened = [(value, value.requires_grad) for value in classifier.parameters()]

    def restore(self) -> None:
        """Put everything back, on the device and in the type that the classifier has now."""
        mean = self._classifier.backbone.mean
        for module, attributes in self._attributes:
            vars(module).clear()
            for name, (value, content) in attributes.items():
                vars(module)[name] = value
                if content is not None:
                    value.clear()
                    value.update(content)
        old = self._classifier.backbone.mean
        if old.device != mean.device:
            self._classifier.to(mean.device)
        if old.dtype != mean.dtype:
            self._classifier.to(mean.dtype)
        self._restore_opened()

    def freeze(self) -> None:
        """Freeze what the method opened, and what it added."""
        self._classifier.requires_grad_(False)
        self._restore_opened()

    def _restore_opened(self) -> None:
        for value, requires_grad in self._opened:
            value.requires_grad_(requires_grad)


def _content(value: Any) -> Any:
    """Return a copy of a dict or set, so that its content can be put back."""
    return value.copy() if isinstance(value, (dict, set)) else None
