"""What one run is: every choice checked and in plain values, without Hydra, without torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from so_clip.checks import (
    MAX_MIB,
    auto_mib,
    device_name,
    flag,
    method_name,
    not_negative,
    number,
    one_of,
    optional_path,
    path,
    title,
    unicode_text,
    whole,
)
from so_clip.config.keys import check_keys
from so_clip.config.protocols import ALL, PROTOCOLS, imbalance_alpha, transfer_targets
from so_clip.config.user_data import user_data
from so_clip.data.examples import ON_CORRUPT
from so_clip.data.fewshot import PROTOCOLS as SPLIT_PROTOCOLS
from so_clip.data.user.dataset import UserData
from so_clip.data.user.prompt_file import is_prompt_file
from so_clip.errors import InputError
from so_clip.optim.options import check_steps, checked_options
from so_clip.system.machine import core_share

PRECISIONS = ("fp32", "bf16", "fp16")
MEMORY_MODES = ("fast", "balanced", "small")
AUTO = "auto"
TEMPLATES = ("plain", "specific", "ensemble")
# What torch's generators take.
MAX_SEED = 2**63 - 1
# Far beyond any dataset's classes: a slip of the key must not fill the memory with repeats.
MAX_SHOTS = 10_000
# Each is a thread of the operating system.
MAX_WORKERS = 256
# Where things go, their titles, and how fast they come: only seconds depend on it, and the last
# digits of what other numbers of CPU threads round otherwise. Then what identity.py knows better.
NO_DIFFERENCE = (
    *("results_dir", "force", "threads", "checkpoint_seconds", "method_title"),
    *("evaluation.workers", "evaluation.cache_dir", "evaluation.decode_cache_gib"),
    *("split_file", "backbone.checkpoint", "data_root", "on_corrupt"),
)
# Options that came later, with values under which a run is what it was before them.
_LATER: dict[str, Any] = {
    **{"protocol": ALL, "transfer": [], "imbalance": None},
    **{"own": None, "image_budget_mib": None},
}


@dataclass(frozen=True)
class Schedule:
    """For how long, and how fast: `max_steps` 0 trains nothing, `stop_loss` 0 never stops early."""

    batch_size: int
    max_steps: int
    stop_loss: float
    lr_min: float


@dataclass(frozen=True)
class Augment:
    """Training crops: the share of the area they cover, and whether half of them are mirrored."""

    scale: tuple[float, float]
    flip: bool


@dataclass(frozen=True)
class Evaluation:
    """How test images become features: images a batch, decoding threads, precision, and a cache.

    `workers` 0 decodes in the main thread, `precision` auto is the run's, `cache_dir` None keeps no
    features, `decode_cache_gib` 0 no decoded images, `every_steps` 0 evaluates after training only.
    """

    batch_size: int
    workers: int
    precision: str
    cache_dir: Path | None
    decode_cache_gib: float
    every_steps: int


@dataclass(frozen=True)
class Settings:
    """One run's choices. `NO_DIFFERENCE` names those that cannot change what it measures."""

    dataset: str
    own: UserData | None
    split_file: Path | None
    backbone: dict[str, Any]
    method: str
    method_title: str
    adapter: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    schedule: Schedule
    augment: Augment
    evaluation: Evaluation
    shots: int
    seed: int
    split_protocol: str
    protocol: str
    transfer: tuple[str, ...]
    imbalance: float | None
    template: str
    device: str
    precision: str
    memory: str
    text_budget_mib: float | None
    image_budget_mib: float | None
    threads: int | None
    checkpoint_seconds: float
    force: bool
    on_corrupt: str
    data_root: Path
    results_dir: Path
    # How many runs share this machine, which is no choice of this one and not recorded.
    at_once: int = field(default=1, compare=False)

    @property
    def evaluation_precision(self) -> str:
        """The precision in which test images are encoded."""
        precision = self.evaluation.precision
        return self.precision if precision == AUTO else precision

    @property
    def adapts(self) -> bool:
        """Whether this run draws training images and changes the model with them at all."""
        return self.adapter is not None

    @property
    def trains(self) -> bool:
        """Whether it does so by gradient steps."""
        return self.optimizer is not None

    @property
    def data(self) -> dict[str, Any]:
        """What `so_clip.data.run_data.gather` takes, by its names."""
        keys = ("dataset", "data_root", "split_file", "shots", "seed", "split_protocol")
        more = ("protocol", "transfer", "imbalance", "own", "template", "on_corrupt")
        values = {key: getattr(self, key) for key in (*keys, *more)}
        evaluation = self.evaluation
        return values | {"kept_in": evaluation.cache_dir, "workers": evaluation.workers}

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values: what config.yaml holds."""
        values = json.loads(json.dumps(asdict(self), default=str))
        del values["at_once"]
        return values

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all choices that can change the result; identity.py adds the contents."""
        values = self.as_dict()
        for option in NO_DIFFERENCE:
            group, _, key = option.rpartition(".")
            del (values[group] if group else values)[key]
        values["own"] = None  # lists, names and the images' place are among the contents
        for option, before in _LATER.items():
            if values[option] == before:
                del values[option]
        # Which of a machine's GPUs it was, is of no account.
        values["device"] = values["device"].partition(":")[0]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def from_config(config: DictConfig, at_once: int = 1) -> Settings:
    """Check a composed configuration and return it as Settings.

    Args:
        config: as composed by Hydra.
        at_once: how many runs share this machine's cores and memory, of which `auto` takes a part.

    Raises:
        InputError: naming the option, its value, and the values it may take.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, InputError):  # of a resolver that looks at one's own images
            raise error.__cause__ from None
        first = str(error).splitlines()[0]
        raise InputError(f"the configuration cannot be resolved: {first}") from error
    check_keys(values, _KEYS, _TOP_KEYS)
    results_dir = path("results_dir", values["results_dir"])  # first: the cache is in it
    trains = values["optimizer"]["_target_"] is not None
    adapts = values["adapter"]["_target_"] is not None
    if trains and not adapts:
        raise InputError(
            "adapter=none opens no parameters, so the optimizer has nothing to train. "
            "Choose adapter=weights, or method=zero_shot to train nothing."
        )
    data_root = path("data_root", values["data_root"])
    dataset, own = user_data(values["dataset"], data_root)
    settings = Settings(
        dataset=dataset,
        own=own,
        split_file=optional_path("dataset.split_file", values["dataset"].get("split_file")),
        backbone=_backbone(values["backbone"]),
        method=method_name("method.name", values["method"]["name"]),
        method_title=title("method.title", values["method"]["title"]),
        adapter=values["adapter"] if adapts else None,
        optimizer=checked_options(values["optimizer"]) if trains else None,
        schedule=_schedule(values["schedule"]),
        augment=_augment(values["augment"]),
        evaluation=_evaluation(values["evaluation"], at_once),
        shots=whole("shots", values["shots"], 1, MAX_SHOTS),
        seed=whole("seed", values["seed"], 0, MAX_SEED),
        split_protocol=one_of("split_protocol", values["split_protocol"], SPLIT_PROTOCOLS),
        protocol=one_of("protocol", values["protocol"], PROTOCOLS),
        transfer=transfer_targets(values["transfer"], dataset),
        imbalance=imbalance_alpha(values["imbalance"]),
        template=_template(values["template"]),
        device=device_name("device", values["device"]),
        precision=one_of("precision", values["precision"], (AUTO, *PRECISIONS)),
        memory=one_of("memory", values["memory"], MEMORY_MODES),
        text_budget_mib=auto_mib("text_budget_mib", values["text_budget_mib"]),
        image_budget_mib=auto_mib("image_budget_mib", values["image_budget_mib"]),
        threads=_threads(values["threads"], at_once),
        checkpoint_seconds=not_negative("checkpoint_seconds", values["checkpoint_seconds"]),
        force=flag("force", values["force"]),
        on_corrupt=one_of("on_corrupt", values["on_corrupt"], ON_CORRUPT),
        data_root=data_root,
        results_dir=results_dir,
        at_once=at_once,
    )
    if settings.optimizer is not None:
        schedule = settings.schedule
        lr = settings.optimizer["lr"]
        check_steps(settings.method, lr, schedule.lr_min, schedule.max_steps)
    return settings if adapts else _without_shots(settings)


# Options by group. adapter and optimizer take what their `_target_` takes.
_KEYS = {
    "dataset": ("name", "split_file"),
    "backbone": ("architecture", "pretrained", "checkpoint", "logit_scale"),
    "method": ("name", "title"),
    "schedule": tuple(field.name for field in fields(Schedule)),
    "augment": tuple(field.name for field in fields(Augment)),
    "evaluation": tuple(field.name for field in fields(Evaluation)),
    "adapter": ("_target_",),
    "optimizer": ("_target_",),
}
_TOP_KEYS = (
    *_KEYS,
    *("shots", "seed", "split_protocol", "template", "device", "precision", "memory"),
    *("protocol", "transfer", "imbalance", "text_budget_mib", "image_budget_mib", "threads"),
    *("checkpoint_seconds", "force", "on_corrupt", "data_root", "results_dir"),
)


def _without_shots(settings: Settings) -> Settings:
    """Drop what cannot change zero-shot CLIP, so that a sweep measures it once."""
    return replace(
        settings,
        shots=0,
        seed=0,
        split_protocol="none",
        imbalance=None,
        schedule=Schedule(batch_size=0, max_steps=0, stop_loss=0, lr_min=0),
        augment=Augment((1, 1), False),
        evaluation=replace(settings.evaluation, every_steps=0),
    )


def _backbone(values: dict[str, Any]) -> dict[str, Any]:
    for key in ("architecture", "pretrained"):
        if not isinstance(values[key], str) and (key == "architecture" or values[key] is not None):
            raise InputError(f"backbone.{key}={values[key]}: must be a name, as open_clip has it.")
    optional_path("backbone.checkpoint", values["checkpoint"])
    scale = number("backbone.logit_scale", values["logit_scale"])
    if scale <= 0:
        raise InputError(f"backbone.logit_scale={scale}: must be above 0; CLIP's is 100.")
    return values | {"logit_scale": scale}


def _schedule(values: dict[str, Any]) -> Schedule:
    return Schedule(
        batch_size=whole("schedule.batch_size", values["batch_size"], 1),
        max_steps=whole("schedule.max_steps", values["max_steps"], 0),
        stop_loss=not_negative("schedule.stop_loss", values["stop_loss"]),
        lr_min=not_negative("schedule.lr_min", values["lr_min"]),
    )


def _augment(values: dict[str, Any]) -> Augment:
    given = values["scale"]
    if not isinstance(given, list) or len(given) != 2:
        raise InputError(f"augment.scale={given}: must be two numbers, such as [0.08,1.0].")
    low, high = (number("augment.scale", value) for value in given)
    if not 0 < low <= high <= 1:
        raise InputError(f"augment.scale={given}: needs 0 < low <= high <= 1, such as [0.08,1.0].")
    return Augment((low, high), flag("augment.flip", values["flip"]))


def _evaluation(values: dict[str, Any], at_once: int) -> Evaluation:
    return Evaluation(
        batch_size=whole("evaluation.batch_size", values["batch_size"], 1),
        workers=_workers(values["workers"], at_once),
        precision=one_of("evaluation.precision", values["precision"], (AUTO, *PRECISIONS)),
        cache_dir=optional_path("evaluation.cache_dir", values["cache_dir"]),
        decode_cache_gib=not_negative(
            "evaluation.decode_cache_gib", values["decode_cache_gib"], MAX_MIB / 1024
        ),
        every_steps=whole("evaluation.every_steps", values["every_steps"], 0),
    )


def _threads(value: Any, at_once: int) -> int | None:
    if value != AUTO:
        return whole("threads", value, 1, MAX_WORKERS)
    return None if at_once == 1 else core_share(at_once)


def _workers(value: Any, at_once: int) -> int:
    if value != AUTO:
        return whole("evaluation.workers", value, 0, MAX_WORKERS)
    return core_share(at_once)


def _template(value: Any) -> str:
    fair = isinstance(value, str) and (value.count("{}") == 1 or is_prompt_file(value))
    if value not in TEMPLATES and not fair:
        raise InputError(
            f"template={value}: must be plain, specific, ensemble, a text with one {{}} for the "
            "class name, or a file of templates or class descriptions (.txt, .json, .yaml)."
        )
    return unicode_text("template", value)
