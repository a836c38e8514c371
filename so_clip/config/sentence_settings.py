"""The choices of one run on sentences, checked and in typed parts.

Every option is declared here, in so_clip.config.run_settings or in so_clip.data.sentences.choice,
once. conf/sentences.yaml takes the defaults from here, and `rte --help options` the help.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from so_clip.checks import MAX_COUNT, AutoFlag, Options, option, option_key, path, unicode_text
from so_clip.config.run_settings import (
    AUTO,
    RunEvaluation,
    RunPlacement,
    RunSchedule,
    RunSettings,
    defaults,
    dumped,
    without_effect,
)
from so_clip.data.sentences.choice import SentenceChoice
from so_clip.errors import InputError

# The folder of the adapted model in a run's folder.
MODEL_FOLDER = "model"
# The kind of run, in records.
TASK = "sentences"
SOURCES = ("hub", "package", "folder")
# The name is part of the run folder's name.
MAX_MODEL_NAME = 64
# [CLS] a [SEP] b [SEP], with a token or two of each sentence.
LEAST_LENGTH = 8
# More tokens than any encoder reads. A typing error must not fill the memory.
MOST_LENGTH = 2**16
# The adapter that trains the head alone. CLIP has no such head.
HEAD = "head"
# Roles of vectors. An adapter of these alone would train all vectors with dense_rest=true.
_VECTOR_ROLES = {"bias", "norm"}


class ModelChoice(Options):
    """The pre-trained encoder of sentences, and how it reads them."""

    source: str = option(
        help="hub:ORG/NAME | package:NAME (an installed Python package that holds the weights) | "
        "folder:PATH, as save_pretrained of transformers writes it"
    )
    name: str = option(help="in tables and names of run folders | null: the folder's name")
    token_types: bool = option(
        True, "say to the encoder which sentence a token belongs to; false: as the released code"
    )
    max_length: int = option(
        128,
        "tokens of an example; longer ones are cut, the longer sentence first",
        ge=LEAST_LENGTH,
        le=MOST_LENGTH,
    )
    padding: Literal["longest", "max_length"] = option(
        "longest", "to the longest example of a batch (exact under the mask) | to max_length"
    )

    @property
    def fixed_length(self) -> int | None:
        """Tokens of all batches; None for the longest example of each batch."""
        return self.max_length if self.padding == "max_length" else None

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> str:
        key = option_key(info)
        if not isinstance(value, (str, int, type(None))) or isinstance(value, bool):
            raise InputError(f"{key}={value}: must be a text, such as {key}=FOLDER.")
        kind, colon, place = str(value).partition(":")
        if value is None or not str(value).strip() or (kind in SOURCES and not place):
            raise InputError(
                f"{key}={'null' if value is None else value}: names no model. Give "
                f"{key}=FOLDER, a folder that holds one, or choose model=minilm."
            )
        if not colon or kind not in SOURCES:  # a path, also C:\\models on Windows
            kind, place = "folder", str(value)
        if kind == "hub" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place, re.ASCII):
            raise InputError(f"{key}={value}: must be hub:NAME or hub:ORG/NAME.")
        if kind == "package" and not re.fullmatch(r"[A-Za-z_]\w*", place, re.ASCII):
            raise InputError(
                f"{key}={value}: must be package:NAME with the name that Python imports."
            )
        return f"{kind}:{path(key, place) if kind == 'folder' else place}"

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: Any, info: ValidationInfo) -> str:
        key = option_key(info)
        if value is None:
            last = re.split(r"[:/\\]", info.data.get("source", "").rstrip("/\\"))[-1]
            value = re.sub(r"[^A-Za-z0-9_.-]", "_", last)[:MAX_MODEL_NAME] or "model"
        text = unicode_text(key, str(value))
        if not re.fullmatch(f"[A-Za-z0-9_.-]{{1,{MAX_MODEL_NAME}}}", text):
            raise InputError(
                f"{key}={value}: must be made of letters, digits, _, . and -, at most "
                f"{MAX_MODEL_NAME} of them."
            )
        return text


class SentenceSchedule(RunSchedule):
    """The length of the training. `stop_loss` 0 never stops early."""

    batch_size: int = option(help="training examples a step", ge=1, le=MAX_COUNT)
    stop_loss: float = option(
        help="the training ends at this loss, see stop_on; 0: never before max_steps", ge=0
    )
    stop_on: Literal["batch", "epoch"] = option(
        "batch",
        "batch (after a step whose loss is at most stop_loss, as the released code) | epoch (after "
        "an epoch whose mean loss is below it)",
    )


class SentenceEvaluation(RunEvaluation):
    """How test examples are classified."""

    batch_size: int = option(32, "test examples per forward pass", ge=1, le=MAX_COUNT)


class SentencePlacement(RunPlacement):
    """Device, precision, memory, and where the results go."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        AUTO,
        "auto (bf16 on a GPU that supports it, else fp32) | fp32 | bf16 | fp16, with fp32 weights",
    )
    save: AutoFlag = option(
        AUTO,
        "true writes the adapted model as a folder of transformers into the run's folder | auto, "
        "false: no",
        changes_results=False,
    )
    memory: Literal["fast", "balanced", "small"] = option(
        "fast",
        "fast | balanced (keeps a little less for the backward pass) | small (keeps least; slower)",
    )


class SentenceSettings(RunSettings):
    """The choices of one run on sentences.

    Attributes:
        dense_rest: what trains densely beside the method's own weights. A user's `auto` is
            replaced.
        dense_bias_correction: of the moments of these dense weights, if SO trains them.
    """

    data: SentenceChoice
    model: ModelChoice
    schedule: SentenceSchedule
    evaluation: SentenceEvaluation
    placement: SentencePlacement
    dense_rest: Literal[True, False, "head"] = option(
        AUTO,
        "trained densely, too: true (vectors, pooler, classifier) | head (pooler, classifier) | "
        "false | auto (head for head, bitfit and layer_norm, else true)",
    )
    dense_bias_correction: Literal["step", "twice"] = option(
        "step",
        "of SO's moments of these dense weights: step (Adam's) | twice (as the released code, with "
        "a first step of 10 lr)",
    )

    @field_validator("dense_rest", mode="before")
    @classmethod
    def _check_rest(cls, value: Any, info: ValidationInfo) -> Any:
        if value == AUTO:
            adapter = info.data["method"].adapter
            roles = set(map(str, adapter.options.get("roles") or ())) if adapter else set()
            is_head = adapter is not None and adapter.name == HEAD
            return "head" if is_head or (roles and roles <= _VECTOR_ROLES) else True
        if not isinstance(value, bool) and value != "head":
            raise InputError(f"dense_rest={value}: must be auto, true, head or false.")
        return value

    @property
    def stop_on(self) -> Literal["epoch", "batch"]:
        """Whether the mean loss of an epoch, or the loss of one batch, ends the training."""
        return self.schedule.stop_on

    @property
    def demanded_files(self) -> tuple[str, ...]:
        """The optional files that a finished run must have, or it is repeated."""
        return (MODEL_FOLDER,) if self.placement.save is True else ()

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values: the content of config.yaml in the run folder."""
        return {
            "task": TASK,
            **dumped(self.data),
            "model": dumped(self.model),
            **self.method_record(),
            **{name: getattr(self, name) for name in DENSE_OPTIONS},
            "schedule": dumped(self.schedule),
            "evaluation": dumped(self.evaluation),
            **dumped(self.placement),
        }


PARTS: dict[str, type[Options]] = {
    "model": ModelChoice,
    "schedule": SentenceSchedule,
    "evaluation": SentenceEvaluation,
}
DATA_OPTIONS = tuple(name for name in SentenceChoice.model_fields if name != "dataset")
DENSE_OPTIONS = ("dense_rest", "dense_bias_correction")
TOP_LEVEL = (*DATA_OPTIONS, *DENSE_OPTIONS, *SentencePlacement.model_fields)
GROUPS = ("dataset", "method", "adapter", "optimizer", *PARTS)
# Recorded options that cannot change a result.
NO_DIFFERENCE = without_effect([("", SentenceChoice), ("", SentencePlacement), *PARTS.items()]) | {
    "method_title"
}


def default_options() -> dict[str, Any]:
    """Return all options outside the groups, with their defaults, for conf/sentences.yaml."""
    return {
        "model": defaults(ModelChoice, ("token_types", "max_length", "padding")),
        **defaults(SentenceChoice, DATA_OPTIONS),
        **defaults(SentenceSettings, DENSE_OPTIONS),
        **defaults(SentencePlacement),
        "schedule": defaults(SentenceSchedule, ("stop_on",)),
        "evaluation": defaults(SentenceEvaluation),
    }


def declared_options() -> dict[str, FieldInfo]:
    """Return every declared option by its name on the command line, such as "model.source"."""
    return dict(_declared())


def _declared() -> Iterator[tuple[str, FieldInfo]]:
    top = {
        **SentenceSettings.model_fields,
        **SentenceChoice.model_fields,
        **SentencePlacement.model_fields,
    }
    yield from ((name, top[name]) for name in TOP_LEVEL)
    for group, options in PARTS.items():
        yield from ((f"{group}.{name}", field) for name, field in options.model_fields.items())
