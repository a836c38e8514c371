"""The methods that the benchmark compares, and the training steps that it times.

Tensor names end in their shape: B images of a batch, C H W pixels, K classes, L tokens.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.bench.reference_so import ReferenceSO
from so_clip.capture.captured_step import WARM_UP_STEPS, CapturedStep, Recorder
from so_clip.capture.device_steps import device_steps
from so_clip.capture.eager import Eager
from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.packed_text import default_text_budget_mib
from so_clip.clip.load import load_backbone
from so_clip.clip.prompts import class_prompts
from so_clip.data.cards.card import load_card
from so_clip.errors import InputError
from so_clip.methods.clip_lora import ClipLoRA
from so_clip.methods.weights import Weights
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.runtime.precision import Precision
from so_clip.train import compute_gradients

LR = 2e-4
NO_CHUNKS = 1e9  # MiB
DENSITY_RATIO = 5e-4
T = 10
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """The size of a training step.

    Args:
        dataset: its class names make the prompts.
        batch: images.
        architecture: of the backbone.
        classes: only the first classes of the dataset; None: all.
        density_ratio: SO's kappa.
        position: the blocks that are trained.
        precision: of matrix products, fp32 | bf16 | fp16; weights are float32.
    """

    dataset: str
    batch: int
    architecture: str
    classes: int | None = None
    density_ratio: float = DENSITY_RATIO
    position: str = "all"
    precision: str = "fp32"

    def prompts(self) -> list[str]:
        """Return the prompts of the classes from the card's plain template."""
        card = load_card(self.dataset)
        return class_prompts(card.class_names[: self.classes], card.template_sets["plain"])

    def images(self, backbone: Backbone, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a batch of noise, images_BCHW uint8 and labels_B."""
        draw = torch.Generator().manual_seed(0)
        size = (self.batch, 3, backbone.image_size, backbone.image_size)
        images_BCHW = torch.randint(256, size, generator=draw, dtype=torch.uint8)
        labels_B = torch.randint(len(self.prompts()), (self.batch,), generator=draw)
        return images_BCHW.to(device), labels_B.to(device)


Kind = Literal["reference", "lora", "adamw", "so"]


@dataclass(frozen=True)
class Contender:
    """A method to compare: its kind of training and its memory mode."""

    name: str
    title: str
    kind: Kind
    memory: Memory = "fast"


REFERENCE = Contender("reference", "plain path, per-matrix SO", "reference")
LORA = Contender("lora", "CLIP-LoRA, AdamW, memory=fast", "lora")
ADAMW = Contender("adamw", "dense AdamW, memory=fast", "adamw")
ENGINE = Contender("engine_fast", "SO engine, memory=fast", "so")
BALANCED = Contender("engine_balanced", "SO engine, memory=balanced (default)", "so", "balanced")
SMALL = Contender("engine_small", "SO engine, memory=small", "so", "small")
CONTENDERS = (REFERENCE, LORA, ADAMW, ENGINE, BALANCED, SMALL)
# CLIP-LoRA with the engine's other memory modes.
LORA_BALANCED = Contender("lora_balanced", "CLIP-LoRA, AdamW, memory=balanced", "lora", "balanced")
LORA_SMALL = Contender("lora_small", "CLIP-LoRA, AdamW, memory=small", "lora", "small")


def row_head(shape: Shape, contender: Contender) -> dict[str, Any]:
    """Return the columns with which a row about a contender's step begins."""
    return {
        "dataset": shape.dataset,
        "classes": len(shape.prompts()),
        "architecture": shape.architecture,
        "batch": shape.batch,
        "precision": shape.precision,
        "contender": contender.name,
        "title": contender.title,
    }


class Seconds(NamedTuple):
    """Seconds of the parts of a step."""

    forward: float
    backward: float
    optimizer: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self)


class Trainer:
    """A contender's model, optimizer and batch of one shape."""

    def __init__(
        self,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer,
        images_BCHW: Tensor,
        labels_B: Tensor,
        precision: Precision,
    ) -> None:
        self.classifier, self.optimizer, self.precision = classifier, optimizer, precision
        self.batch = images_BCHW, labels_B
        self.device = images_BCHW.device
        self._loss: Tensor | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        return self.optimizer.param_groups[0]["params"]

    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """Return the parts of a training step, to be called in this order, by name."""
        return [
            ("forward", self._forward),
            ("backward", self._backward),
            ("optimizer", self._optimize),
        ]

    def step(self) -> Seconds:
        """Take a training step."""
        times = [self.now()]
        for _, run in self.parts():
            run()
            times.append(self.now())
        return Seconds(*(after - before for before, after in pairwise(times)))

    def step_without_times(self) -> None:
        """Take a training step without waiting for the device."""
        for _, run in self.parts():
            run()

    def captured(self, recorder: Recorder, warm_up_steps: int = WARM_UP_STEPS) -> CapturedStep:
        """Return a step that is recorded and replayed, as runs have it on a GPU.

        Raises:
            InputError: the optimizer's step cannot be captured.
        """
        steps = device_steps(self.optimizer)
        if isinstance(steps, Eager):
            raise InputError(steps.refusal())
        gradients = partial(
            compute_gradients, self.classifier, precision=self.precision, caches_casts=False
        )
        return CapturedStep(
            gradients,
            self.classifier,
            self.optimizer,
            steps,
            recorder,
            other_parts=self.classifier.parts,
            warm_up_steps=warm_up_steps,
        )

    def _forward(self) -> None:
        images_BCHW, labels_B = self.batch
        with self.precision.autocast():
            self._loss = F.cross_entropy(self.classifier(images_BCHW).float(), labels_B)

    def _backward(self) -> None:
        assert self._loss is not None
        self._loss.backward()
        self._loss = None

    def _optimize(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def now(self) -> float:
        """Wait for the device's work and return the time in seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def make_trainer(
    contender: Contender,
    shape: Shape,
    device: torch.device,
    fake: FakeTensorMode | None = None,
    as_on_cuda: bool | None = None,
) -> Trainer:
    """Build a contender's Trainer for a shape, with random weights or with fake tensors.

    Args:
        contender, shape, device: what to train, and where.
        fake: makes fake tensors, on the CPU.
        as_on_cuda: whether to use what a run uses on a GPU: the arena of weights with
            half-precision copies, whole products, and the larger budget for prompts. None: on a
            GPU.
    """
    is_reference = contender.kind == "reference"
    as_on_cuda = device.type == "cuda" if as_on_cuda is None else as_on_cuda
    with fake or nullcontext():
        backbone = load_backbone(
            shape.architecture, explicit=not is_reference, seed=0, memory=contender.memory
        )
    tokens_KL = backbone.tokenize(shape.prompts())
    if is_reference:
        classifier = Classifier(backbone, tokens_KL, NO_CHUNKS, share_prefixes=False)
    else:
        budget_mib = default_text_budget_mib(contender.memory, as_on_cuda)
        classifier = Classifier(backbone, tokens_KL, budget_mib)
    if fake is None:
        classifier = classifier.to(device)
    adapter: Any = Weights(position=shape.position)
    if contender.kind == "lora":
        adapter = ClipLoRA(position=shape.position)
    parameters = list(adapter(classifier).values())
    optimizer = _optimizer(contender.kind, parameters, shape.density_ratio)
    precision = Precision(shape.precision, device)
    if isinstance(optimizer, SO):
        if as_on_cuda:
            half = _HALVES.get(shape.precision) if contender.memory == "fast" else None
            optimizer.pack(half)
        whole = True if as_on_cuda and device.type != "cuda" else None
        sampled_gradients(classifier, optimizer, whole=whole)
    return Trainer(classifier, optimizer, *shape.images(backbone, device), precision)


def _optimizer(
    kind: Kind, parameters: list[nn.Parameter], density_ratio: float
) -> torch.optim.Optimizer:
    if kind == "reference":
        return ReferenceSO(parameters, LR, density_ratio=density_ratio, T=T)
    if kind == "so":
        return SO(parameters, LR, density_ratio=density_ratio, T=T)
    weight_decay = 1e-2 if kind == "lora" else 0.0
    return torch.optim.AdamW(parameters, LR, weight_decay=weight_decay, fused=True)
