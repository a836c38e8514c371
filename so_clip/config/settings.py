"""The choices of one run, checked and in typed parts, without Hydra and without torch.

Every option is declared here or in so_clip.data.choice, once: its type, limits, default and help
text. conf/config.yaml takes the defaults from here, and `--help options` the help.
"""

from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from so_clip.checks import (
    MAX_MIB,
    AutoFlag,
    AutoMib,
    OptionalPathOption,
    Options,
    number,
    option,
    option_key,
    optional_path,
)
from so_clip.clip.loading.architecture_names import absolute, is_place
from so_clip.config.run_settings import (
    AUTO,
    MAX_WORKERS,
    AutoPrecision,
    Component,
    MethodChoice,
    RunEvaluation,
    RunPlacement,
    RunSchedule,
    RunSettings,
    defaults,
    dumped,
    steps_in_epochs,
    whole_or_share,
    without_effect,
)
from so_clip.data.choice import DataChoice
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.errors import InputError
from so_clip.results.logits_file import logits_file

__all__ = [
    "AUTO",
    "Component",
    "MethodChoice",
    "RunSettings",
    "defaults",
    "steps_in_epochs",
    "without_effect",
]

# A typing error must not fill the memory with the order of an epoch.
MAX_CROPS = 1000
# Options of the backbone that replace what its weights imply. Fingerprints leave out `auto`.
PIXEL_OPTIONS = ("resize_mode", "interpolation", "mean", "std")


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


class Schedule(RunSchedule):
    """The length of the training, and its crops."""

    crops: int = option(1, "random crops of each image in an epoch", ge=1, le=MAX_CROPS)


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


class Evaluation(RunEvaluation):
    """How test images become features."""

    workers: Annotated[int, whole_or_share(0)] = option(
        AUTO,
        "threads that decode test images: auto (one per core) | a number; 0: the main thread",
        changes_results=False,
        ge=0,
        le=MAX_WORKERS,
    )
    precision: AutoPrecision = option(
        AUTO, "of the image tower: auto (the run's; needed for fp16_authors) | fp32 | bf16 | fp16"
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


class Placement(RunPlacement):
    """Device, precision, memory, and where the results go."""

    memory: Literal["fast", "balanced", "small"] = option(
        "balanced",
        "fast | balanced (less; slower with many classes) | small (a third; slower)",
    )
    text_budget_mib: AutoMib = option(
        AUTO, "MiB for prompts in training | auto (fast 1024; balanced 128, on GPUs 1024; small 64)"
    )
    image_budget_mib: AutoMib = option(
        AUTO, "MiB for decoded training images; above it each batch decodes its images | auto"
    )
    rank_timeout_seconds: float = option(
        300,
        "under torchrun: a process without a sign of life for this time ends the run",
        changes_results=False,
        ge=1,
    )


class Settings(RunSettings):
    """The choices of one run on images.

    Attributes:
        task_epochs: passes over the few-shot images of each task (tasks=N), in place of
            `schedule.max_steps`; None if all tasks have the same steps.
    """

    data: DataChoice
    backbone: BackboneChoice
    schedule: Schedule
    augment: Augment
    evaluation: Evaluation
    placement: Placement
    episodes: EpisodeOptions = EpisodeOptions()
    task_epochs: int | None = None

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
    def demanded_files(self) -> tuple[str, ...]:
        """The optional files that a finished run must have, or it is repeated."""
        keeps_logits = self.evaluation.keep_logits is True
        return (*super().demanded_files, *([logits_file()] if keeps_logits else []))

    def with_logit_scale(self, scale: float) -> "Settings":
        """Return the settings with a number in place of backbone.logit_scale=auto."""
        backbone = self.backbone.model_copy(update={"logit_scale": scale})
        return self.model_copy(update={"backbone": backbone})

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values: the content of config.yaml in the run folder.

        The options of tasks are there only for a run of tasks, so that other runs keep the
        fingerprints that they had before there were tasks.
        """
        data, schedule = dumped(self.data), dumped(self.schedule)
        tasks = {"episodes": dumped(self.episodes)} if data["tasks"] else {}
        if not tasks:
            del data["tasks"]
        if self.task_epochs is not None:
            schedule["max_steps"] = f"{self.task_epochs} epochs"
        return {
            **data,
            "backbone": dumped(self.backbone),
            **self.method_record(),
            "schedule": schedule,
            "augment": dumped(self.augment),
            "evaluation": dumped(self.evaluation),
            **dumped(self.placement),
            **tasks,
        }


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


NO_DIFFERENCE = without_effect([("", DataChoice), ("", Placement), *PARTS.items()]) | {
    "method_title"
}


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
