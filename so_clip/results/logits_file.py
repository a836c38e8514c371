"""`logits.safetensors`: the kept logits of a test set, in a run's folder, read without torch.

Array names end in their shape: N test images, V validation images, K classes. The format is
described in docs/reference/logits_file.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from so_clip.errors import InputError, reason_of
from so_clip.results.calibration import COLDEST, HOTTEST, fit_temperature
from so_clip.results.scores import ADAPTED, ZERO_SHOT
from so_clip.system.commands import command
from so_clip.system.safe_open import read_plain

LOGITS_FILE = "logits.safetensors"
FORMAT, FORMAT_VERSION = "so_clip.logits", 1
# The largest file that `auto` writes, and the largest that is written and read at all.
AUTO_BYTES, MAX_BYTES = 32 * 2**20, 4 * 2**30
# Bytes of a logit, of a label, rank or confidence, and of the header.
_LOGIT, _WHOLE, _HEADER = 2, 4, 1024

Array = npt.NDArray[Any]


class Keeps(NamedTuple):
    """The models whose logits are kept."""

    zero_shot: bool
    adapted: bool


def logits_bytes(models: int, images: int, validation_images: int, classes: int) -> int:
    """Return the size of a file with the logits of some models."""
    model = images * 2 * _WHOLE + (images + validation_images) * classes * _LOGIT
    return _HEADER + (images + validation_images) * _WHOLE + models * model


def logits_kept(
    option: bool | Literal["auto"], images: int, validation_images: int, classes: int, adapts: bool
) -> Keeps:
    """Return the models whose logits a run keeps for a test set.

    `auto` keeps both models if their file has at most AUTO_BYTES. Otherwise it keeps the adapted
    model if that fits, and otherwise nothing.

    Args:
        option: evaluation.keep_logits.
        images, validation_images, classes: N, V and K.
        adapts: False for a zero-shot run, which has no adapted model.

    Raises:
        InputError: the option is true and the file would be larger than MAX_BYTES.
    """
    one, two = (logits_bytes(models, images, validation_images, classes) for models in (1, 2))
    if option == "auto":
        fits = one <= AUTO_BYTES
        return Keeps(two <= AUTO_BYTES, fits) if adapts else Keeps(fits, False)
    size = two if adapts else one
    if option and size > MAX_BYTES:
        raise InputError(
            f"evaluation.keep_logits=true: the logits of {images} images and {classes} classes "
            f"take {size / 2**30:.1f} GiB, and at most {MAX_BYTES / 2**30:g} GiB are kept. Use "
            "evaluation.keep_logits=auto."
        )
    return Keeps(option, option and adapts)


@dataclass(frozen=True)
class ModelLogits:
    """The logits of one model.

    Attributes:
        logits_NK: float16, minus the logit of the predicted class: the predicted class has 0, and
            every other class is below 0.
        confidence_N: float32, the softmax probability of the predicted class before rounding.
        rank_N: the number of classes with a larger logit than the label, before rounding.
    """

    logits_NK: Array
    confidence_N: Array
    rank_N: Array


@dataclass(frozen=True)
class Validation:
    """The logits of a run's drawn validation images.

    Attributes:
        label_V: their classes, from 0.
        logits: logits_VK of each model, in the form of ModelLogits, by the prefix of its scores.
    """

    label_V: Array
    logits: Mapping[str, Array]

    @cached_property
    def temperatures(self) -> Mapping[str, float | None]:
        """The temperature of each model, by the same prefixes; see fit_temperature."""
        return {
            prefix: fit_temperature(logits_VK, self.label_V)
            for prefix, logits_VK in self.logits.items()
        }


@dataclass(frozen=True)
class KeptLogits:
    """The content of one file.

    Attributes:
        label_N: the classes of the test images, from 0, in the order of predictions.csv.
        models: by the prefix of their scores; at least one.
        temperatures: of each model, by the same prefixes. None: there is none.
        calibrated_on: the number of validation images that gave the temperatures.
        images_sha256: of the test list, to compare the lists of two runs.
        run_fingerprint: of the run.
        validation: None for other test sets than the run's own, and without validation images.
    """

    label_N: Array
    models: Mapping[str, ModelLogits]
    temperatures: Mapping[str, float | None]
    calibrated_on: int
    images_sha256: str
    run_fingerprint: str
    validation: Validation | None = None

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return int(next(iter(self.models.values())).logits_NK.shape[1])

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        from safetensors.numpy import save

        arrays = {"label": self.label_N.astype(np.int32)}
        for prefix, model in self.models.items():
            arrays[f"{prefix}logits"] = model.logits_NK
            arrays[f"{prefix}confidence"] = model.confidence_N.astype(np.float32)
            arrays[f"{prefix}rank"] = model.rank_N.astype(np.int32)
        if self.validation is not None:
            arrays["validation_label"] = self.validation.label_V.astype(np.int32)
            kept = {prefix: self.validation.logits[prefix] for prefix in self.models}
            arrays |= {f"validation_{prefix}logits": kept[prefix] for prefix in kept}
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{f"{prefix}temperature": self.temperatures.get(prefix) for prefix in self.models},
            "calibrated_on": self.calibrated_on,
            "images_sha256": self.images_sha256,
            "run_fingerprint": self.run_fingerprint,
        }
        metadata = {key: json.dumps(value) for key, value in about.items()}
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return bytes(save(whole, metadata))


def logits_file(test_set: str = "") -> str:
    """Return the name of the file of a test set; "" is the run's own."""
    return LOGITS_FILE.replace(".", f"_{test_set}.") if test_set else LOGITS_FILE


def read_logits(path: Path) -> KeptLogits:
    """Return the content of a file, checked.

    Raises:
        InputError: there is no such file, or it is not one that a run has written.
    """
    repeat = command("--from", path.parent, "evaluation.keep_logits=true", "force=true")
    try:
        return _from_bytes(read_plain(path, MAX_BYTES))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: this run has no {path.name}. Repeat it: {repeat}"
        ) from None
    except Exception as error:  # torn or foreign files raise almost any exception
        message = f"{path} cannot be read: {reason_of(error)}. Repeat the run: {repeat}"
        raise InputError(message) from error


def _from_bytes(data: bytes) -> KeptLogits:
    from safetensors.numpy import load

    arrays = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = {key: json.loads(text) for key, text in header.get("__metadata__", {}).items()}
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if about.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"its format version is {about.get('format_version')}, not {FORMAT_VERSION}"
        )
    label_N = _array(arrays, "label", np.int32)
    models = {
        prefix: _model(arrays, prefix, label_N)
        for prefix in (ZERO_SHOT, ADAPTED)
        if f"{prefix}logits" in arrays
    }
    if len({model.logits_NK.shape for model in models.values()}) != 1:
        raise ValueError("it has no logits, or those of two models differ in shape")
    classes = next(iter(models.values())).logits_NK.shape[1]
    temperatures = {prefix: about[f"{prefix}temperature"] for prefix in models}
    for prefix, value in temperatures.items():
        if value is not None and not (type(value) is float and COLDEST <= value <= HOTTEST):
            raise ValueError(f"{prefix}temperature is {value}")
    if type(about["calibrated_on"]) is not int or about["calibrated_on"] < 0:
        raise ValueError(f"calibrated_on is {about['calibrated_on']}")
    return KeptLogits(
        label_N,
        models,
        temperatures,
        about["calibrated_on"],
        str(about["images_sha256"]),
        str(about["run_fingerprint"]),
        _validation(arrays, [*models], classes) if "validation_label" in arrays else None,
    )


def _model(arrays: Mapping[str, Array], prefix: str, label_N: Array) -> ModelLogits:
    logits_NK = _logits(arrays, f"{prefix}logits", label_N)
    rank_N = _array(arrays, f"{prefix}rank", np.int32)
    classes = logits_NK.shape[1]
    if rank_N.shape != label_N.shape or (rank_N < 0).any() or (rank_N >= classes).any():
        raise ValueError(f"{prefix}rank has values that are no ranks of {classes} classes")
    if ((rank_N == 0) != (logits_NK.argmax(axis=1) == label_N)).any():
        raise ValueError(f"{prefix}rank does not agree with {prefix}logits")
    confidence_N = _array(arrays, f"{prefix}confidence", np.float32)
    if confidence_N.shape != label_N.shape or not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError(f"{prefix}confidence has values that are not between 0 and 1")
    return ModelLogits(logits_NK, confidence_N, rank_N)


def _validation(arrays: Mapping[str, Array], prefixes: Sequence[str], classes: int) -> Validation:
    label_V = _array(arrays, "validation_label", np.int32)
    logits = {prefix: _logits(arrays, f"validation_{prefix}logits", label_V) for prefix in prefixes}
    for prefix, logits_VK in logits.items():
        if logits_VK.shape[1] != classes:
            raise ValueError(f"validation_{prefix}logits has {logits_VK.shape[1]} classes")
    return Validation(label_V, logits)


def _logits(arrays: Mapping[str, Array], name: str, label_N: Array) -> Array:
    """Return an array of logits; each row must have one 0, for its predicted class."""
    logits_NK = _array(arrays, name, np.float16)
    if len(logits_NK) != len(label_N) or not logits_NK.size:
        raise ValueError(f"{name} has shape {list(logits_NK.shape)} for {len(label_N)} labels")
    if not np.isfinite(logits_NK).all():
        raise ValueError(f"{name} has numbers that are not finite")
    if (logits_NK > 0).any() or (
        np.count_nonzero(logits_NK, axis=1) != len(logits_NK[0]) - 1
    ).any():
        raise ValueError(f"{name} has a row without a single largest value of 0")
    if (label_N < 0).any() or (label_N >= logits_NK.shape[1]).any():
        raise ValueError(f"a label is not one of the {logits_NK.shape[1]} classes of {name}")
    return logits_NK


def _array(arrays: Mapping[str, Array], name: str, kind: type[np.generic]) -> Array:
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    array = arrays[name]
    if array.dtype != kind or array.ndim != (2 if kind is np.float16 else 1):
        raise ValueError(f"{name} has type {array.dtype} and shape {list(array.shape)}")
    return array
