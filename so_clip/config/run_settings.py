"""The options that all runs share: method, length of the training, device, and places of results.

so_clip.config.settings adds those of runs on images, so_clip.config.sentence_settings those of
runs on sentences.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from so_clip.checks import (
    MAX_COUNT,
    AutoCount,
    AutoFlag,
    DeviceOption,
    Options,
    PathOption,
    option,
)
from so_clip.data.choice import RunData
from so_clip.errors import InputError
from so_clip.results.run_files import ADAPTER_FILE
from so_clip.system.machine import core_share

AUTO = "auto"
# The method's name is part of the run folder's name. File systems allow 255 bytes for that.
MAX_METHOD_NAME = 64
# Each worker is a thread of the operating system.
MAX_WORKERS = 256
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


class Component(Options):
    """An adapter or an optimizer: a named class or function and its options.

    Attributes:
        name: identifies it in fingerprints, records and tables.
        target: the import path of the class or function. It is never recorded, so that code can
            move.
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


class RunSchedule(Options):
    """The length of the training. `max_steps` 0 trains nothing; `stop_loss` 0 never stops early."""

    batch_size: int = option(help="training images per step", ge=1, le=MAX_COUNT)
    max_steps: int = option(help="the last step, and the length of the cosine", ge=0, le=MAX_COUNT)
    stop_loss: float = option(
        help="an epoch with a mean training loss below this is the last; 0: never", ge=0
    )
    lr_min: float = option(help="where the cosine ends", ge=0)
    drop_last: bool = option(
        False, "leave out the last batch of an epoch if it is incomplete and not the only one"
    )


def steps_in_epochs(epochs: int, images: int, *, batch_size: int, drop_last: bool) -> int:
    """Return the steps in a number of epochs over some training images.

    Without its incomplete last batch, an epoch of fewer images than a batch still has one step.
    """
    if drop_last:
        return epochs * max(1, images // batch_size)
    return epochs * -(-images // batch_size)


class RunEvaluation(Options):
    """How test examples are classified."""

    batch_size: AutoCount = option(
        256, "test images per forward pass | auto (on GPUs 32 to 1024, by free memory; else 256)"
    )
    every_steps: int = option(
        0,
        "steps between two test accuracies in curve.csv; 0: none. They choose nothing",
        ge=0,
        le=MAX_COUNT,
    )


class RunPlacement(Options):
    """Device, precision, and where the results go."""

    device: DeviceOption = option(AUTO, "auto | cpu | cuda | cuda:N | mps (Apple silicon)")
    precision: AutoPrecision = option(
        AUTO,
        "auto (bf16 on a GPU that supports it, else fp32) | fp32 | bf16 | fp16, with fp32 weights "
        "| fp16_authors (frozen weights and logits in fp16, as in CLIP-LoRA's code)",
    )
    memory: Literal["fast", "balanced", "small"]
    graph: AutoFlag = option(
        AUTO,
        "each training step as one CUDA graph: auto (on CUDA, if the method allows it) | true (an "
        "error if it is not possible) | false",
        changes_results=False,
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


class RunSettings(Options):
    """The choices of one run, of any kind.

    Attributes:
        parallel_runs: how many runs share this machine. It is not a choice and is not recorded.
    """

    data: RunData
    method: MethodChoice
    schedule: RunSchedule
    evaluation: RunEvaluation
    placement: RunPlacement
    parallel_runs: int = 1

    @property
    def adapts(self) -> bool:
        """Whether this run draws training examples and changes the model with them."""
        return self.method.adapter is not None

    @property
    def stop_on(self) -> Literal["epoch", "batch"]:
        """Whether the mean loss of an epoch, or the loss of one batch, ends the training."""
        return "epoch"

    @property
    def trains(self) -> bool:
        """Whether this run changes the model by gradient steps."""
        return self.method.optimizer is not None

    @property
    def demanded_files(self) -> tuple[str, ...]:
        """The optional files that a finished run must have, or it is repeated."""
        return (ADAPTER_FILE,) if self.placement.save is True else ()

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values: the content of config.yaml in the run folder."""
        raise NotImplementedError

    def method_record(self) -> dict[str, Any]:
        """Return the part of `record` that says what changes, and how."""
        adapter, optimizer = self.method.adapter, self.method.optimizer
        return {
            "method": self.method.name,
            "method_title": self.method.title,
            "adapter": adapter.record() if adapter else None,
            "optimizer": optimizer.record() if optimizer else None,
        }


def dumped(options: Options) -> dict[str, Any]:
    """Return options as JSON values."""
    # Without warnings: a zero-shot run holds split_protocol "none", which no user may choose.
    return options.model_dump(mode="json", warnings=False)


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


def defaults(options: type[Options], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the defaults of a class of options: of all, or of those with the given names."""
    fields = options.model_fields
    return {name: fields[name].default for name in names or fields}
