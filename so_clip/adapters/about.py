"""The metadata of an adapter file: base, classes, prompts, method and calibration.

A file's metadata have one key. Its text is a JSON object with these values. Several keys would have
another order in each file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from so_clip.clip.engine.blocks import Memory
from so_clip.clip.prompts import Prompts, described, templated
from so_clip.data.choice import MAX_SEED
from so_clip.data.transforms import Interpolation, ResizeMode
from so_clip.errors import InputError
from so_clip.runtime.precision import PRECISIONS

KEY, FORMAT_VERSION, CONTENT_SHA256 = "so_clip_adapter", 1, "sha256"
# For adapters that were not made by a run.
DEFAULT_TEMPLATE = "a photo of a {}."
_PRECISIONS = f"^({'|'.join(PRECISIONS)})$"
Positive = Field(gt=0, lt=1e30)
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
_SHOWN = 12  # digits of a hash in messages
_LONGEST = 200  # characters of a name


class Record(BaseModel):
    """Base of the records in a file: immutable and strict; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=False, allow_inf_nan=False)


class PixelRecord(Record):
    """How the base takes images, in the words of open_clip's `preprocess_cfg`."""

    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[Share, Share, Share]
    std: tuple[PositiveShare, PositiveShare, PositiveShare]
    fill_color: int = Field(default=0, ge=0, le=255)
    crop_share: PositiveShare = 1.0


class Base(Record):
    """The model that the adapter belongs to.

    Attributes:
        architecture, pretrained: open_clip's names; `pretrained` is None for other weights.
        weights_sha256: of its state dict; see Backbone.weights_sha256.
        logit_scale: the factor from cosines to logits.
        quick_gelu: whether its activation is QuickGELU, which the weights do not show.
        description: architecture and origin of the weights, for messages.
        pixels: None in files of earlier versions, and if no run made the file.
        place_sha256: of the sizes and the tokenizer of a base in a folder or repository, which the
            weights do not show; None for other bases.
    """

    architecture: str = Field(max_length=_LONGEST)
    pretrained: str | None = Field(default=None, max_length=_LONGEST)
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    logit_scale: float = Positive
    quick_gelu: bool = False
    description: str = Field(default="", max_length=3 * _LONGEST)
    pixels: PixelRecord | None = None
    place_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The recorded values of `pixels`; {} if there are none."""
        return {} if self.pixels is None else self.pixels.model_dump()

    @property
    def shown(self) -> str:
        """The model and the start of its hash, for messages."""
        return with_hash(self.description or self.architecture, self.weights_sha256)


class LowRank(Record):
    """tensor[rows] += scale · up @ diag(diagonal) @ down: a low-rank update of a base tensor.

    Attributes:
        tensor: its name in open_clip's state dict.
        shape: of the whole tensor.
        rows: first row, and the row after the last.
        down, up: the names of A [rank, inputs] and B [outputs, rank] among the added tensors.
        diagonal: the name of rank factors, or None for ones.
        scale: of the update.
    """

    tensor: str
    shape: tuple[int, int]
    rows: tuple[int, int]
    down: str
    up: str
    diagonal: str | None = None
    scale: float


class Shape(Record):
    """The shape and the type, such as "float32", of a changed tensor."""

    shape: tuple[int, ...]
    dtype: str


class UsedSettings(Record):
    """The options among `settings` that a restored classifier needs."""

    memory: Memory = "balanced"
    text_budget_mib: float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    adapter: dict[str, Any] | None = None


class About(Record):
    """The metadata of an adapter file.

    Attributes:
        kind: "run", or how the file was made: "diff", "merge" or "scale".
        base: the model that it belongs to.
        dataset: the name of the run's dataset.
        class_names: of the training classes, in the order of the logits.
        templates: of the prompts; empty if `descriptions` are given.
        descriptions: prompts of each class.
        method, method_title: of the run.
        settings: all options of the run that can change its result, as in config.yaml.
        weights_only: whether the changes and the low-rank updates are the whole adapter.
        class_bound: whether the adapter classifies its own classes only.
        precision, evaluation_precision: of training, and of the image tower on test images.
        run_fingerprint: of the run.
        temperature: divides logits, for calibrated confidences; None if no image could be used.
        calibrated_on: number of validation images that the temperature was fitted on.
        shapes: of each changed tensor, by name.
        added: names of the added tensors.
        low_rank: updates that can be added to plain weights.
    """

    kind: Literal["run", "diff", "merge", "scale"] = "run"
    base: Base
    dataset: str = ""
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    descriptions: tuple[tuple[str, ...], ...] | None = None
    method: str = ""
    method_title: str = ""
    settings: dict[str, Any] = {}
    weights_only: bool = True
    class_bound: bool = False
    precision: str = Field(default="fp32", pattern=_PRECISIONS)
    evaluation_precision: str = Field(default="fp32", pattern=_PRECISIONS)
    run_fingerprint: str = ""
    temperature: float | None = Field(default=None, gt=0, lt=1e30)
    calibrated_on: int = Field(default=0, ge=0)
    shapes: dict[str, Shape] = {}
    added: tuple[str, ...] = ()
    low_rank: tuple[LowRank, ...] = ()

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        UsedSettings.model_validate(value)
        return value

    @property
    def used(self) -> UsedSettings:
        """The options that a restored classifier needs."""
        return UsedSettings.model_validate(self.settings)

    @property
    def name(self) -> str:
        """A short name for messages."""
        parts = (self.method or self.kind, self.dataset and f"on {self.dataset}")
        return " ".join(part for part in parts if part)

    def prompts(self, class_names: tuple[str, ...] | None = None) -> Prompts:
        """Return the prompts of the training classes, or of other classes.

        Raises:
            InputError: other classes are given, but each class has its own descriptions.
        """
        if self.descriptions is None:
            names = self.class_names if class_names is None else class_names
            return templated(names, self.templates or (DEFAULT_TEMPLATE,))
        if class_names is not None and class_names != self.class_names:
            raise InputError(
                "other class names: each training class has its own descriptions, so no template "
                "makes the prompts of other classes. Use the training classes."
            )
        texts = dict(zip(self.class_names, self.descriptions, strict=True))
        return described(self.class_names, texts)

    def to_metadata(self, tensors_sha256: str) -> dict[str, str]:
        """Return the metadata of a file.

        Args:
            tensors_sha256: of its tensors; see sha256_of_weights.
        """
        values = {"format_version": FORMAT_VERSION, **self.model_dump(mode="json")}
        values[CONTENT_SHA256] = content_sha256(values, tensors_sha256)
        return {KEY: json.dumps(values, ensure_ascii=False)}


def content_sha256(values: Mapping[str, Any], tensors_sha256: str) -> str:
    """Return the SHA-256 of a file's metadata and tensors, by which damage is found."""
    counted = {key: value for key, value in values.items() if key != CONTENT_SHA256}
    return hashlib.sha256(
        f"{tensors_sha256}\n{json.dumps(counted, sort_keys=True)}".encode()
    ).hexdigest()


def about_from(metadata: Mapping[str, str] | None, place: str) -> About:
    """Return a file's metadata, checked.

    Args:
        metadata: as safetensors returns it.
        place: the file, for messages.

    Raises:
        InputError: this is no adapter file, its version is newer, or a value has another type.
    """
    if KEY not in (metadata or {}):
        raise InputError(
            f"{place}: is no adapter of so_clip: its header does not say so. Give a run's folder "
            "or its adapter.safetensors."
        )
    try:
        values = json.loads((metadata or {})[KEY])
        version = values.get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _malformed(place, error) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{place}: has format version {str(version)[:20]}, and this program reads "
            f"{FORMAT_VERSION}. Upgrade so_clip."
        )
    try:
        about = About.model_validate(values)
    except (ValidationError, RecursionError) as error:
        raise _malformed(place, error) from error
    descriptions = about.descriptions
    if descriptions is not None and len(descriptions) != len(about.class_names):
        raise InputError(
            f"{place}: is damaged: it has descriptions of {len(descriptions)} classes, and "
            f"{len(about.class_names)} class names."
        )
    return about


def with_hash(description: str, sha256: str) -> str:
    """Return a model and the start of the hash of its weights, for messages."""
    return f"{description} ({sha256[:_SHOWN]})"


def _malformed(place: str, error: Exception) -> InputError:
    problem = "its header is no JSON object, or is nested too deeply"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part)[:40] for part in first["loc"])
        problem = f"{key} is {str(first['input'])[:60]!r} ({' '.join(first['msg'].split())[:200]})"
    return InputError(f"{place}: is damaged: {problem}. Copy the file again.")
