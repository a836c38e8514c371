"""The choices of one run, checked and in typed parts, without Hydra and without torch.

Every option is declared here or in so_clip.data.choice, once: its type, limits, default and help
text. conf/config.yaml takes the defaults from here, and `--help options` the help.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from so_clip.checks import (
    MAX_MIB,
    AutoCount,
    AutoFlag,
    AutoMib,
    DeviceOption,
    OptionalPathOption,
    Options,
    PathOption,
    number,
    option,
    option_key,
    optional_path,
)
from so_clip.clip.loading.architecture_names import absolute, is_place
from so_clip.data.choice import DataChoice
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.errors import InputError
from so_clip.results.logits_file import logits_file
from so_clip.results.run_files import ADAPTER_FILE
from so_clip.system.machine import core_share

AUTO = "auto"
# The method's name is part of the run folder's name. File systems allow 255 bytes for that.
MAX_METHOD_NAME = 64
# A typing error must not fill the memory with the order of an epoch.
MAX_CROPS = 1000
# Each worker is a thread of the operating system.
MAX_WORKERS = 256

# Options of the backbone that replace what its weights imply. `auto` leaves no trace in
# fingerprints.
PIXEL_OPTIONS = ("resize_mode", "interpolation", "mean", "std")
AutoPrecision = Literal["auto", "fp32", "bf16", "fp16", "fp16_authors"]


def whole_or_share(least: int) -> Any:
    """Return the check of a number of threads: `auto` is this run's share of the cores."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value != AUTO:
            return value
        concurrent = (info.context or {}).get("parallel_runs", 1)
        # torch chooses its own number of threads for a run that has the machine to itself.
        alone = info.field_name == "threads" and concurrent == 1
        return None if alone else core_share(concurrent)

    return BeforeValidator(check)


class BackboneChoice(Options):
    """The CLIP model and its weights."""

    architecture: str = option(
        help="open_clip's name of the model | hf-hub:ORG/NAME | local-dir:PATH | timm:NAME[@PIXELS]"
    )
    pretrained: str | None = option(
        help="open_clip's or timm's tag of the weights | null: random weights"
    )
    checkpoint: str | None = option(
        help="a local file of weights, read in place of a download", changes_results=False
    )
    logit_scale: float | Literal["auto"] = option(
        help="factor of the cosine similarities; CLIP's is 100 | auto: that of the weights"
    )
    resize_mode: Literal["auto", "shortest", "squash", "longest"] = option(
        AUTO, "of test images: auto (as the weights were trained) | shortest | squash | longest"
    )
    interpolation: Literal["auto", "bicubic", "bilinear"] = option(
        AUTO, "of test images: auto (as the weights were trained) | bicubic | bilinear"
    )
    mean: Literal["auto"] | tuple[float, float, float] = option(
        AUTO, "subtracted from pixels in [0,1]: auto (as the weights were trained) | [R,G,B]"
    )
    std: Literal["auto"] | tuple[float, float, float] = option(
        AUTO, "divides pixels in [0,1]: auto (as the weights were trained) | [R,G,B]"
    )

    @field_validator("architecture", "pretrained", mode="before")
    @classmethod
    def _check_name(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "architecture" and isinstance(value, str):
            return absolute(value)
        if info.field_name == "pretrained" and (value is None or isinstance(value, str)):
            # A repository or folder has weights of its own, and no tags, as in open_clip.
            return None if is_place(info.data.get("architecture", "")) else value
        raise InputError(f"{option_key(info)}={value}: must be a name that open_clip knows.")

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _check_checkpoint(cls, value: Any, info: ValidationInfo) -> Any:
        optional_path(option_key(info), value)
        return None if value is None else str(value)

    @field_validator("logit_scale", mode="before")
    @classmethod
    def _check_scale(cls, value: Any, info: ValidationInfo) -> Any:
        if value == AUTO:
            return value
        if isinstance(value, str):
            raise InputError(f"{option_key(info)}={value}: must be a number above 0, or auto.")
        scale = number(option_key(info), value)
        if scale <= 0:
            raise InputError(f"{option_key(info)}={scale}: must be above 0; CLIP's is 100.")
        return scale

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _check_colour(cls, value: Any, info: ValidationInfo) -> Any:
        if value == AUTO:
            return value
        key, is_std = option_key(info), info.field_name == "std"
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise InputError(
                f"{key}={value}: must be auto or three numbers, such as [0.5,0.5,0.5]."
            )
        colour = tuple(number(key, share) for share in value)
        if not all(0 <= share <= 1 for share in colour) or (is_std and 0 in colour):
            least = "above 0, at most 1" if is_std else "from 0 to 1"
            raise InputError(f"{key}={value}: must be {least}, because pixels are from 0 to 1.")
        return colour

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The options that replace what the weights imply about pixels, without `auto`."""
        values = {name: getattr(self, name) for name in PIXEL_OPTIONS}
        return {name: value for name, value in values.items() if value != AUTO}


class Component(Options):
    """An adapter or an optimizer: a named class or function and its options.

    Attributes:
        name: identifies it in fingerprints, records and tables.
        target: the import path of the class or function. Never recorded, so that code can move.
        options: keyword arguments, plain values.
    """

    name: str
    target: str
    options: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the name and the options: what identifies this choice."""
        return {"name": self.name, **self.options}


class MethodChoice(Options):
    """What changes and how: an adapter and an optimizer. None where the method has none."""

    name: str
    title: str
    adapter: Component | None
    optimizer: Component | None

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: Any) -> str:
        # The name is part of the run folder's name.
        if value is None or not re.fullmatch(f"[A-Za-z0-9_-]{{1,{MAX_METHOD_NAME}}}", str(value)):
            raise InputError(
                f"method.name={value}: must be made of letters, digits, _ and -, at most "
                f"{MAX_METHOD_NAME} of them."
            )
        return str(value)

    @field_validator("title", mode="before")
    @classmethod
    def _check_title(cls, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise InputError(f"method.title={value!r}: must be a line of text, for table rows.")
        if "|" in value:
            raise InputError(f"method.title={value!r}: must be text without |, for table rows.")
        return value


class Schedule(Options):
    """The length of the training. `max_steps` 0 trains nothing; `stop_loss` 0 never stops early."""

    batch_size: int = option(help="training images a step", ge=1)
    max_steps: int = option(help="the last step, and the length of the cosine", ge=0)
    stop_loss: float = option(
        help="an epoch with a mean training loss below this is the last; 0: never", ge=0
    )
    lr_min: float = option(help="where the cosine ends", ge=0)
    drop_last: bool = option(
        False, "leave out the last batch of an epoch if it is incomplete and not the only one"
    )
    crops: int = option(1, "random crops of each image in an epoch", ge=1, le=MAX_CROPS)


def steps_in_epochs(epochs: int, images: int, *, batch_size: int, drop_last: bool) -> int:
    """Return the steps in a number of epochs over some training images.

    Without its incomplete last batch, an epoch of fewer images than a batch still has one step.
    """
    if drop_last:
        return epochs * max(1, images // batch_size)
    return epochs * -(-images // batch_size)


class Augment(Options):
    """Training crops."""

    scale: tuple[float, float] = option([0.08, 1.0], "share of the image's area in a random crop")
    flip: bool = option(True, "mirror half of the training images")

    @field_validator("scale", mode="before")
    @classmethod
    def _check_scale(cls, value: Any, info: ValidationInfo) -> tuple[float, float]:
        key = option_key(info)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise InputError(f"{key}={value}: must be two numbers, such as [0.08,1.0].")
        low, high = (number(key, share) for share in value)
        if not 0 < low <= high <= 1:
            raise InputError(f"{key}={value}: needs 0 < low <= high <= 1, such as [0.08,1.0].")
        return low, high


class Evaluation(Options):
    """How test images become features."""

    batch_size: AutoCount = option(
        256, "test images per forward pass | auto (on GPUs 32 to 1024, by free memory; else 256)"
    )
    workers: Annotated[int, whole_or_share(0)] = option(
        AUTO,
        "threads that decode test images: auto (one a core) | a number; 0: the main thread",
        changes_results=False,
        ge=0,
        le=MAX_WORKERS,
    )
    precision: AutoPrecision = option(
        AUTO, "of the image tower: auto (the run's; needed for fp16_authors) | fp32 | bf16 | fp16"
    )
    every_steps: int = option(
        0, "test accuracy after so many steps, in curve.csv; 0: never. It chooses nothing", ge=0
    )
    cache_dir: OptionalPathOption = option(
        "${results_dir}/.features",
        "folder that keeps zero-shot features of test images for other runs | null",
        changes_results=False,
    )
    decode_cache_gib: float = option(
        8,
        "disk space for decoded test images, used if the image tower trains; 0: none",
        changes_results=False,
        ge=0,
        le=MAX_MIB / 1024,
    )
    keep_logits: AutoFlag = option(
        AUTO,
        "keep the logits of test images for rescore: auto (files up to 32 MiB) | true | false",
        changes_results=False,
    )


class Placement(Options):
    """Device, precision, memory, and where the results go."""

    device: DeviceOption = option(AUTO, "auto | cpu | cuda | cuda:N | mps (Apple silicon)")
    precision: AutoPrecision = option(
        AUTO,
        "auto (bf16 on a GPU that supports it, else fp32) | fp32 | bf16 | fp16, with fp32 weights "
        "| fp16_authors (frozen weights and logits in fp16, as in CLIP-LoRA's code)",
    )
    memory: Literal["fast", "balanced", "small"] = option(
        "balanced",
        "fast | balanced (less; slower with many classes) | small (a third, 1.4 times as slow)",
    )
    graph: AutoFlag = option(
        AUTO,
        "each training step as one CUDA graph: auto (on CUDA, if the method allows it) | true (an "
        "error if it is not possible) | false",
        changes_results=False,
    )
    text_budget_mib: AutoMib = option(
        AUTO, "MiB for prompts in training | auto (fast 1024; balanced 128, on GPUs 1024; small 64)"
    )
    image_budget_mib: AutoMib = option(
        AUTO, "MiB for decoded training images; above it each batch is decoded anew | auto"
    )
    threads: Annotated[int | None, whole_or_share(1)] = option(
        AUTO,
        "CPU threads of torch | auto (torch's own number)",
        changes_results=False,
        ge=1,
        le=MAX_WORKERS,
    )
    checkpoint_seconds: float = option(
        60,
        "an interrupted run loses at most this much training; 0: all of it",
        changes_results=False,
        ge=0,
    )
    rank_timeout_seconds: float = option(
        300,
        "under torchrun: a process without a sign of life for this time ends the run",
        changes_results=False,
        ge=1,
    )
    save: AutoFlag = option(
        AUTO,
        "adapter.safetensors in the run's folder: auto (up to 64 MiB) | true | false",
        changes_results=False,
    )
    force: bool = option(False, "true repeats a finished run", changes_results=False)
    results_dir: PathOption = option(
        "results/runs",
        "the folder of all runs; each run makes a folder in it",
        changes_results=False,
    )


class Settings(Options):
    """The choices of one run.

    Attributes:
        task_epochs: passes over the few-shot images of each task (tasks=N), in place of
            `schedule.max_steps`; None if all tasks have the same steps.
        parallel_runs: how many runs share this machine. It is not a choice and is not recorded.
    """

    data: DataChoice
    backbone: BackboneChoice
    method: MethodChoice
    schedule: Schedule
    augment: Augment
    evaluation: Evaluation
    placement: Placement
    episodes: EpisodeOptions = EpisodeOptions()
    task_epochs: int | None = None
    parallel_runs: int = 1

    @property
    def evaluation_precision(self) -> str:
        """The precision in which test images are encoded."""
        precision = self.evaluation.precision
        return self.placement.precision if precision == AUTO else precision

    def check_precision(self) -> None:
        """Raise InputError if test images would need other weights than training."""
        training, evaluation = self.placement.precision, self.evaluation_precision
        if "fp16_authors" in (training, evaluation) and training != evaluation:
            raise InputError(
                f"evaluation.precision={evaluation} with precision={training}: fp16_authors "
                "changes the weights, for training and evaluation. Leave evaluation.precision out."
            )

    @property
    def adapts(self) -> bool:
        """Whether this run draws training images and changes the model with them."""
        return self.method.adapter is not None

    @property
    def demanded_files(self) -> tuple[str, ...]:
        """The optional files that a finished run must have, or it is repeated."""
        options = {
            ADAPTER_FILE: self.placement.save,
            logits_file(): self.evaluation.keep_logits,
        }
        return tuple(file for file, keeps in options.items() if keeps is True)

    @property
    def trains(self) -> bool:
        """Whether this run changes the model by gradient steps."""
        return self.method.optimizer is not None

    def with_logit_scale(self, scale: float) -> "Settings":
        """Return the settings with a number in place of backbone.logit_scale=auto."""
        backbone = self.backbone.model_copy(update={"logit_scale": scale})
        return self.model_copy(update={"backbone": backbone})

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values: the content of config.yaml in the run folder.

        The options of tasks are there only for a run of tasks, so that other runs keep the
        fingerprints that they had before there were tasks.
        """
        adapter, optimizer = self.method.adapter, self.method.optimizer
        data, schedule = _dumped(self.data), _dumped(self.schedule)
        tasks = {"episodes": _dumped(self.episodes)} if data["tasks"] else {}
        if not tasks:
            del data["tasks"]
        if self.task_epochs is not None:
            schedule["max_steps"] = f"{self.task_epochs} epochs"
        return {
            **data,
            "backbone": _dumped(self.backbone),
            "method": self.method.name,
            "method_title": self.method.title,
            "adapter": adapter.record() if adapter else None,
            "optimizer": optimizer.record() if optimizer else None,
            "schedule": schedule,
            "augment": _dumped(self.augment),
            "evaluation": _dumped(self.evaluation),
            **_dumped(self.placement),
            **tasks,
        }


def _dumped(options: Options) -> dict[str, Any]:
    # Without warnings: a zero-shot run holds split_protocol "none", which no user may choose.
    return options.model_dump(mode="json", warnings=False)


PARTS: dict[str, type[Options]] = {
    "backbone": BackboneChoice,
    "schedule": Schedule,
    "augment": Augment,
    "evaluation": Evaluation,
    "episodes": EpisodeOptions,
}
_DATASET_OPTIONS = ("dataset", "user_data", "split_file")
DATA_OPTIONS = tuple(name for name in DataChoice.model_fields if name not in _DATASET_OPTIONS)
TOP_LEVEL = (*DATA_OPTIONS, *Placement.model_fields)
GROUPS = ("dataset", "method", "adapter", "optimizer", *PARTS)


def without_effect(groups: Iterable[tuple[str, type[Options]]]) -> frozenset[str]:
    """Return the recorded options that cannot change a result, such as "evaluation.workers".

    Args:
        groups: the classes of options with their names; "" for the top level.
    """
    names = set()
    for group, options in groups:
        for name, field in options.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and not extra["changes_results"]:
                names.add(f"{group}.{name}" if group else name)
    return frozenset(names)


NO_DIFFERENCE = without_effect([("", DataChoice), ("", Placement), *PARTS.items()]) | {
    "method_title"
}


def defaults(options: type[Options], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the defaults of a class of options: of all, or of those with the given names."""
    fields = options.model_fields
    return {name: fields[name].default for name in names or fields}


def default_options() -> dict[str, Any]:
    """Return all options outside the groups, with their defaults, for conf/config.yaml."""
    return {
        "backbone": defaults(BackboneChoice, PIXEL_OPTIONS),
        **defaults(DataChoice, DATA_OPTIONS),
        **defaults(Placement),
        "augment": defaults(Augment),
        "evaluation": defaults(Evaluation),
        "episodes": defaults(EpisodeOptions),
    }


def declared_options() -> dict[str, FieldInfo]:
    """Return every declared option by its name on the command line, such as "schedule.lr_min"."""
    top = {**DataChoice.model_fields, **Placement.model_fields}
    declared = {name: top[name] for name in TOP_LEVEL}
    for group, options in PARTS.items():
        declared |= {f"{group}.{name}": field for name, field in options.model_fields.items()}
    return declared
