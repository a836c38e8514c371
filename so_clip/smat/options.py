"""The numbers of SMAT: those of the model, and those of its meta-training."""

from dataclasses import dataclass
from typing import Literal

from so_clip.checks import flag, number, one_of, whole
from so_clip.errors import InputError

Granularity = Literal["weight", "row", "matrix"]
Head = Literal["text", "prototype", "mean"]
GRANULARITIES = ("weight", "row", "matrix")
HEADS: tuple[Head, ...] = ("text", "prototype", "mean")
AUTO: Literal["auto"] = "auto"
# More tasks than any machine can do; larger numbers have no place in a float.
MOST_TASKS = 10**12
# beta of the hard-concrete masks.
BETA = 2 / 3
# The released code counts its schedule in epochs of 2,000 tasks, and plans 50 epochs.
RELEASED_EPOCH_TASKS, RELEASED_EPOCHS, RELEASED_WARMUP_EPOCHS = 2000, 50, 5


@dataclass(frozen=True)
class SmatOptions:
    """The model: experts and router.

    Attributes:
        experts: M, the number of masks.
        granularity: a mask has a value for each weight, each output row or each matrix.
        sparsity: the share of weights that each mask must make zero, in [0, 1).
        first_spread: standard deviation of the first logits of the masks.
        noise: add logistic noise to the logits of the masks in training. The released code draws
            its uniform numbers from 0.5 ± 1e-6, so it has none.
        test_beta: beta of the masks after training. The released code has 1, so that its masks are
            denser in a test than in training.
        keys: trained | redrawn. The released code never trains the router's keys and skill tokens
            and does not save them, so that a loaded model has others ("redrawn").
        task_embedding: skills (the mean of the skill tokens' outputs) | first_class (the output of
            the first class, as in the released code; it depends on the order of the classes).
        skill_tokens: learned tokens of the router.
        text_tokens: whether the router also reads the class texts.

    Raises:
        InputError: an option is out of range.
    """

    experts: int = 4
    granularity: Granularity = "weight"
    sparsity: float = 0.9
    first_spread: float = 0.5
    noise: bool = False
    test_beta: float = BETA
    keys: Literal["trained", "redrawn"] = "trained"
    task_embedding: Literal["skills", "first_class"] = "skills"
    skill_tokens: int = 4
    text_tokens: bool = True

    def __post_init__(self) -> None:
        whole("adapter.experts", self.experts, 1, 1024)
        whole("adapter.skill_tokens", self.skill_tokens, 0, 1024)
        one_of("adapter.granularity", self.granularity, GRANULARITIES)
        one_of("adapter.keys", self.keys, ("trained", "redrawn"))
        one_of("adapter.task_embedding", self.task_embedding, ("skills", "first_class"))
        flag("adapter.noise", self.noise)
        flag("adapter.text_tokens", self.text_tokens)
        if not 0 <= number("adapter.sparsity", self.sparsity) < 1:
            raise InputError(f"adapter.sparsity={self.sparsity}: must be in [0, 1).")
        _at_least_zero("adapter.first_spread", self.first_spread)
        _above_zero("adapter.test_beta", self.test_beta)
        if self.task_embedding == "skills" and not self.skill_tokens:
            raise InputError(
                "adapter.skill_tokens=0: the task embedding is the mean of their outputs. Use 1 or "
                "more, or adapter.task_embedding=first_class."
            )


@dataclass(frozen=True)
class TrainingOptions:
    """The meta-training.

    Attributes:
        tasks: planned number of tasks.
        tasks_per_update: tasks whose gradients one update averages.
        head: the classifier in training: text | prototype | mean.
        inner_lr: of the one step on the few-shot images; 0: no step.
        teacher_lr: of the dense teacher's one step on the query images; 0: no dense teacher.
        frozen_teacher: whether the untouched encoder is a teacher too.
        distillation: d; the loss is (1 - d) · cross-entropy + d · distillation.
        distillation_temperature: T of the distillation.
        delta_lr, delta_momentum, delta_decay: of the shared update's SGD.
        delta_clip: largest norm of its gradient; 0: no limit.
        mask_lr: of the masks' SGD; "auto": 0.0462 for each logit of an expert, the ratio of the
            paper's ViT-S (1e6 for 21.7 M weights), because the penalty is a mean over weights.
        mask_clip: largest norm of the masks' gradient; 0: no limit.
        router_lr, router_decay, router_clip: of the router's AdamW.
        router_penalty: factor of the mean squared logit of the router.
        lambda_lr: of the Lagrange multipliers' ascent.
        temperature, least_temperature: of the expert weights, at the first task and from
            `temperature_share` of the planned tasks on.
        temperature_share: see `temperature`.
        schedule: cosine (a cosine after a linear warm-up, in each update) | released (steps of
            epochs of 2,000 tasks within 50 epochs, and nearly no training in the first).
        warmup_share: share of the updates with a linear warm-up, for schedule=cosine.

    Raises:
        InputError: an option is out of range.
    """

    tasks: int = 50_000
    tasks_per_update: int = 4
    head: Head = "text"
    inner_lr: float = 1e-3
    teacher_lr: float = 5e-3
    frozen_teacher: bool = True
    distillation: float = 0.25
    distillation_temperature: float = 2.0
    delta_lr: float = 1e-4
    delta_momentum: float = 0.9
    delta_decay: float = 1e-4
    delta_clip: float = 0.0
    mask_lr: float | Literal["auto"] = AUTO
    mask_clip: float = 5.0
    router_lr: float = 1e-4
    router_decay: float = 1e-2
    router_clip: float = 1.0
    router_penalty: float = 1e-4
    lambda_lr: float = 2e-3
    temperature: float = 5.0
    least_temperature: float = 0.5
    temperature_share: float = 0.36
    schedule: Literal["cosine", "released"] = "cosine"
    warmup_share: float = 0.1

    def __post_init__(self) -> None:
        whole("training.tasks", self.tasks, 1, MOST_TASKS)
        whole("training.tasks_per_update", self.tasks_per_update, 1)
        one_of("training.head", self.head, HEADS)
        one_of("training.schedule", self.schedule, ("cosine", "released"))
        flag("training.frozen_teacher", self.frozen_teacher)
        for name in ("temperature", "least_temperature", "distillation_temperature"):
            _above_zero(f"training.{name}", getattr(self, name))
        for name in ("distillation", "temperature_share", "warmup_share", "delta_momentum"):
            value = getattr(self, name)
            if not 0 <= number(f"training.{name}", value) <= 1:
                raise InputError(f"training.{name}={value}: must be in [0, 1].")
        if self.distillation and not (self.frozen_teacher or self.teacher_lr):
            raise InputError(
                f"training.distillation={self.distillation}: there is no teacher. Give "
                "training.distillation=0, training.frozen_teacher=true or a training.teacher_lr "
                "above 0."
            )
        rates = ["inner_lr", "teacher_lr", "delta_lr", "router_lr", "lambda_lr"]
        limits = ["delta_clip", "mask_clip", "router_clip"]
        others = ["delta_decay", "router_decay", "router_penalty"]
        for name in [*rates, *limits, *others, *(["mask_lr"] if self.mask_lr != AUTO else [])]:
            _at_least_zero(f"training.{name}", getattr(self, name))

    def temperature_at(self, tasks: int) -> float:
        """Return the temperature of the expert weights after `tasks` tasks."""
        horizon = self.temperature_share * self.tasks
        share = min(1.0, tasks / horizon) if horizon else 1.0
        return self.temperature + (self.least_temperature - self.temperature) * share


def _above_zero(name: str, value: float) -> None:
    if number(name, value) <= 0:
        raise InputError(f"{name}={value}: must be above 0.")


def _at_least_zero(name: str, value: float) -> None:
    if number(name, value) < 0:
        raise InputError(f"{name}={value}: must be 0 or above.")
