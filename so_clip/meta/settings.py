"""The choices of one meta-training, checked and in typed parts, without Hydra and without torch.

Every option is declared here or in the classes named here, once. conf/meta/config.yaml takes the
defaults from here, and `python -m so_clip meta --help` the help.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from so_clip.checks import (
    AutoMib,
    DeviceOption,
    OptionalPathOption,
    Options,
    PathOption,
    number,
    option,
    option_key,
)
from so_clip.config.run_settings import MAX_WORKERS, whole_or_share
from so_clip.config.settings import (
    AUTO,
    PIXEL_OPTIONS,
    Augment,
    BackboneChoice,
    defaults,
    without_effect,
)
from so_clip.data.choice import MAX_SEED, MAX_SHOTS, TemplateOption
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.errors import InputError
from so_clip.smat.options import (
    Granularity,
    Head,
    SmatOptions,
    TrainingOptions,
)

BEST = "best"
SOURCES = ("imagenet", "fgvc", "dtd", "oxford_flowers")
TARGETS = (
    *("food101", "oxford_pets", "stanford_cars", "caltech101"),
    *("sun397", "eurosat", "ucf101"),
)


def _auto_rate(value: Any, info: ValidationInfo) -> Any:
    if value == AUTO:
        return value
    if isinstance(value, str):
        raise InputError(f"{option_key(info)}={value}: must be auto, or a number.")
    return number(option_key(info), value)


class AdapterChoice(Options):
    """The weights that are meta-trained, and the model of their experts: SmatOptions."""

    roles: tuple[str, ...] = option(
        ["matrices"], "roles of the image tower's parameters; see docs/how_to/roles.md"
    )
    position: str = option(
        "all",
        "blocks: all | blocks | half-bottom | half-up | bottom | mid | up | top | last-N",
    )
    experts: int = option(SmatOptions.experts, "M, the number of masks")
    granularity: Granularity = option(
        SmatOptions.granularity,
        "a mask has a value for each: weight | row (of a matrix; less memory) | matrix",
    )
    sparsity: float = option(SmatOptions.sparsity, "share of the weights that each mask makes zero")
    first_spread: float = option(
        SmatOptions.first_spread, "standard deviation of the first logits of the masks"
    )
    noise: bool = option(
        SmatOptions.noise, "logistic noise on the masks in training (the released code has none)"
    )
    test_beta: float = option(
        SmatOptions.test_beta, "beta of the masks after training (the released code has 1)"
    )
    keys: Literal["trained", "redrawn"] = option(
        SmatOptions.keys,
        "the router's keys and skill tokens: trained | redrawn (neither trained nor saved, as in "
        "the released code)",
    )
    task_embedding: Literal["skills", "first_class"] = option(
        SmatOptions.task_embedding,
        "of the router: skills (mean of the skill tokens) | first_class (as in the released code)",
    )
    skill_tokens: int = option(SmatOptions.skill_tokens, "learned tokens of the router")
    text_tokens: bool = option(
        SmatOptions.text_tokens,
        "the router reads class texts too, if there is a text tower (the released code: false)",
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _check_roles(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        return _names(option_key(info), value, "roles, such as [matrices]")

    @property
    def model(self) -> SmatOptions:
        """The options of the model; InputError for one that is out of range."""
        return SmatOptions(**self.model_dump(exclude={"roles", "position"}))


class TrainingChoice(Options):
    """Losses, rates and schedule: TrainingOptions."""

    tasks: int = option(TrainingOptions.tasks, "planned number of tasks")
    tasks_per_update: int = option(
        TrainingOptions.tasks_per_update, "tasks whose gradients one update averages"
    )
    head: Head = option(
        TrainingOptions.head, "classifier in training: text | prototype | mean (of both)"
    )
    inner_lr: float = option(
        TrainingOptions.inner_lr, "rate of the one step on the few-shot images; 0: no step"
    )
    teacher_lr: float = option(
        TrainingOptions.teacher_lr,
        "rate of the dense teacher's one step on the query images; 0: no dense teacher",
    )
    frozen_teacher: bool = option(
        TrainingOptions.frozen_teacher, "the untouched encoder is a teacher too"
    )
    distillation: float = option(
        TrainingOptions.distillation,
        "d: the loss is (1 - d) of the cross-entropy + d of the distillation",
    )
    distillation_temperature: float = option(
        TrainingOptions.distillation_temperature, "T of the distillation"
    )
    delta_lr: float = option(TrainingOptions.delta_lr, "rate of the shared update's SGD")
    delta_momentum: float = option(TrainingOptions.delta_momentum, "momentum of this SGD")
    delta_decay: float = option(TrainingOptions.delta_decay, "weight decay of this SGD")
    delta_clip: float = option(
        TrainingOptions.delta_clip, "largest norm of the shared update's gradient; 0: no limit"
    )
    mask_lr: Annotated[float | Literal["auto"], BeforeValidator(_auto_rate)] = option(
        TrainingOptions.mask_lr,
        "rate of the masks' SGD | auto (grows with the logits of an expert; 1e6 for ViT-S)",
    )
    mask_clip: float = option(
        TrainingOptions.mask_clip, "largest norm of the masks' gradient; 0: no limit"
    )
    router_lr: float = option(TrainingOptions.router_lr, "rate of the router's AdamW")
    router_decay: float = option(TrainingOptions.router_decay, "weight decay of this AdamW")
    router_clip: float = option(
        TrainingOptions.router_clip, "largest norm of the router's gradient; 0: no limit"
    )
    router_penalty: float = option(
        TrainingOptions.router_penalty, "factor of the router's mean squared logit"
    )
    lambda_lr: float = option(
        TrainingOptions.lambda_lr, "rate of the ascent of the Lagrange multipliers"
    )
    temperature: float = option(
        TrainingOptions.temperature, "of the weights of the experts, at the first task"
    )
    least_temperature: float = option(
        TrainingOptions.least_temperature, "the temperature at the end of its linear fall"
    )
    temperature_share: float = option(
        TrainingOptions.temperature_share, "share of the planned tasks in which it falls"
    )
    schedule: Literal["cosine", "released"] = option(
        TrainingOptions.schedule,
        "of the rates: cosine (warm-up, then a cosine, in each update) | released (epochs of 2,000 "
        "tasks; nearly no training in the first)",
    )
    warmup_share: float = option(
        TrainingOptions.warmup_share, "share of the updates with a linear warm-up (cosine)"
    )

    @property
    def options(self) -> TrainingOptions:
        """The options of the training; InputError for one that is out of range."""
        return TrainingOptions(**self.model_dump())


class MetaEpisodes(EpisodeOptions):
    """EpisodeOptions, with varied shots by default."""

    varied_shots: bool = option(True, EpisodeOptions.model_fields["varied_shots"].description or "")


class MetaData(Options):
    """Datasets, prompts and tasks."""

    sources: tuple[str, ...] = option(
        list(SOURCES), "datasets to train on; half of the classes train, half validate"
    )
    targets: tuple[str, ...] = option(
        list(TARGETS), "datasets to test on after training; they choose nothing"
    )
    allow_overlap: bool = option(False, "true allows a dataset among sources and targets")
    shots: int = option(
        4, "few-shot images of each class, if episodes.varied_shots=false", ge=1, le=MAX_SHOTS
    )
    seed: int = option(1, "chooses every random draw of the run", ge=0, le=MAX_SEED)
    template: TemplateOption = option(
        "plain",
        'plain ("a photo of a {}.") | specific (each dataset\'s) | ensemble | a text with one {}',
    )
    validate_every: int = option(
        2000, "tasks between two validations; the last task is followed by one too", ge=1
    )
    validation_tasks: int = option(
        120, "validation tasks of each source, always the same; 0: no validation", ge=0
    )
    test_tasks: int = option(600, "test tasks of each target, after training; 0: no test", ge=0)
    select: Literal["best", "last"] = option(
        BEST, "the state that is kept: best (mean validation accuracy of training.head) | last"
    )
    data_root: PathOption = option(
        "data", "folder that holds the datasets, each in CoOp's layout", changes_results=False
    )
    cards_dir: OptionalPathOption = option(
        None,
        "null | a folder of your own dataset cards (NAME.yaml each)",
        changes_results=False,
    )

    @field_validator("sources", "targets", mode="before")
    @classmethod
    def _check_names(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        names = _names(option_key(info), value, "datasets, such as [dtd,eurosat]")
        if info.field_name == "sources" and not names:
            raise InputError("sources=[]: meta-training needs a dataset. Give one or more.")
        return names


class MetaPlacement(Options):
    """Device, precision, memory, and where the results go."""

    device: DeviceOption = option(AUTO, "auto | cpu | cuda | cuda:N | mps (Apple silicon)")
    precision: Literal["auto", "fp32", "bf16"] = option(
        AUTO, "auto (bf16 on a GPU that supports it, else fp32) | fp32 | bf16, with fp32 weights"
    )
    memory: Literal["fast", "balanced", "small"] = option(
        "fast", "activations kept for the backward pass: fast | balanced | small (slowest)"
    )
    image_budget_mib: AutoMib = option(
        AUTO,
        "MiB for decoded images; others are decoded for each task | auto",
        changes_results=False,
    )
    threads: Annotated[int | None, whole_or_share(1)] = option(
        AUTO,
        "CPU threads of torch | auto (torch's own number)",
        changes_results=False,
        ge=1,
        le=MAX_WORKERS,
    )
    workers: Annotated[int, whole_or_share(0)] = option(
        AUTO,
        "threads that decode images: auto (one per core) | a number; 0: the main thread",
        changes_results=False,
        ge=0,
        le=MAX_WORKERS,
    )
    checkpoint_seconds: float = option(
        60,
        "an interrupted run loses at most this much training; 0: all of it",
        changes_results=False,
        ge=0,
    )
    force: bool = option(False, "true repeats a finished run", changes_results=False)
    results_dir: PathOption = option(
        "results/meta",
        "the folder of all runs; each run makes a folder in it",
        changes_results=False,
    )


class MetaSettings(Options):
    """The choices of one meta-training."""

    backbone: BackboneChoice
    adapter: AdapterChoice
    training: TrainingChoice
    episodes: MetaEpisodes
    augment: Augment
    data: MetaData
    placement: MetaPlacement

    @property
    def shots(self) -> int | None:
        """Few-shot images of each class; None if they vary."""
        return None if self.episodes.varied_shots else self.data.shots

    @property
    def targets(self) -> tuple[str, ...]:
        """The datasets that are tested."""
        return self.data.targets if self.data.test_tasks else ()

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values: the content of config.yaml in the run folder.

        Options without an effect on this run are null.
        """
        parts = {name: getattr(self, name).model_dump(mode="json") for name in PARTS}
        top = self.data.model_dump(mode="json") | self.placement.model_dump(mode="json")
        top |= {"shots": self.shots, "targets": list(self.targets)}
        if not self.targets:
            top["test_tasks"] = 0
        if not self.data.validation_tasks:
            top["validate_every"] = None
        return {**parts, **top}


PARTS: dict[str, type[Options]] = {
    "backbone": BackboneChoice,
    "adapter": AdapterChoice,
    "training": TrainingChoice,
    "episodes": MetaEpisodes,
    "augment": Augment,
}
TOP_LEVEL = (*MetaData.model_fields, *MetaPlacement.model_fields)
NO_DIFFERENCE = without_effect([("", MetaData), ("", MetaPlacement), *PARTS.items()])


def default_options() -> dict[str, Any]:
    """Return all options but those of the backbone's choices, for conf/meta/config.yaml."""
    parts = {name: defaults(options) for name, options in PARTS.items()}
    parts["backbone"] = defaults(BackboneChoice, PIXEL_OPTIONS)
    return {**parts, **defaults(MetaData), **defaults(MetaPlacement)}


def declared_options() -> dict[str, FieldInfo]:
    """Return every declared option by its name on the command line, such as "training.tasks"."""
    declared = {**MetaData.model_fields, **MetaPlacement.model_fields}
    for group, options in PARTS.items():
        declared |= {f"{group}.{name}": field for name, field in options.model_fields.items()}
    return declared


def _names(key: str, value: Any, what: str) -> tuple[str, ...]:
    """Return the texts of a list; InputError for another value."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key}={value}: must be a list of {what}.")
    return tuple(value)
