"""The forecast of a run on sentences: its own code on fake tensors, without data and weights.

Tensor names end in their shape: B examples of a batch, N training examples, L tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from so_clip.build import build_optimizer
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.data.sentences.card import SentenceCard
from so_clip.encoder.places import find_place
from so_clip.errors import InputError
from so_clip.forecast.flops import FlopCounter, Flops
from so_clip.forecast.predict import MODELS, MODELS_CUDA
from so_clip.forecast.steps import CPU, counted_step, forget_values, make_state, refusal
from so_clip.methods.model import Model
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.runtime.precision import pick_precision
from so_clip.sentences.build import assemble_model, load

# Bytes per row of a run's CSV files.
_PREDICTION_ROW, _HISTORY_ROW, _CHANGED_ROW, _DRAWN_ROW = 52, 48, 90, 8
# Bytes of config.yaml, metrics.json, provenance.json, per_class.csv and summary.txt together.
_SMALL_FILES = 6_500


def forecast_sentences(
    settings: SentenceSettings,
    card: SentenceCard,
    report: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Return the memory in MiB, the operations in FLOP and the disk space in bytes of a run.

    All examples have model.max_length tokens, the most that they can have. A batch that is padded
    to its longest example has at most as many.

    Args:
        settings: of the run.
        card: of its dataset; its sizes are used.
        report: called with the name of each stage before its work.

    Raises:
        InputError: a run would refuse the settings, a shape depends on values, or the card has no
            numbers of examples.
    """
    settings, on_gpu = _for_device(settings)
    tested = _tested(settings, card)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        report("building the model")
        model = fake_sentence_model(settings, len(card.label_names), mode)
        with mode:
            report("counting one batch of evaluation")
            evaluation = _evaluation(settings, model, tested)
            report("counting training steps")
            training = _training(settings, model, on_gpu)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise refusal(error) from error
    run_flops = evaluation["evaluation_flops"] + training["training_flops"]
    return {
        "task": "sentences",
        "dataset": settings.data.dataset,
        "backbone": settings.model.name,
        "method": settings.method.name,
        "precision": settings.placement.precision,
        "shots": settings.data.shots,
        "tokens": settings.model.max_length,
        "padding": settings.model.padding,
        "models": MODELS_CUDA if on_gpu else MODELS,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        "dense_parameters": sum(model.parameters[name].numel() for name in model.dense),
        **training.pop("memory"),
        **evaluation,
        "steps": settings.schedule.max_steps,
        **training,
        "run_flops": run_flops,
        **_disk_bytes(settings, model, tested),
    }


def fake_sentence_model(settings: SentenceSettings, classes: int, mode: FakeTensorMode) -> Model:
    """Build the run's model without values.

    Args:
        settings: of the run.
        classes: K.
        mode: of the fake tensors.
    """
    with mode:
        encoder = load(settings, classes, weightless=True)
    model = assemble_model(settings, encoder)
    assert model.adapter is not None
    # Tensors that the adapter added have values until here.
    named = dict(model.classifier.named_parameters())
    names = {id(value): name for name, value in named.items()}
    forget_values(model.classifier, mode)
    labels_N = torch.arange(settings.data.shots) % classes
    model.adapter.start(model.classifier, _Labels(labels_N))
    forget_values(model.classifier, mode)
    now = dict(model.classifier.named_parameters())
    parameters = {name: now[names[id(value)]] for name, value in model.parameters.items()}
    # Gradient scaling skips a step if values overflow, and there are no values.
    model.precision.scaler = torch.amp.GradScaler(CPU.type, enabled=False)
    return replace(model, parameters=parameters)


class _Labels:
    """The training examples without values; see `so_clip.methods.adapter.FewShots`."""

    def __init__(self, labels_N: Tensor) -> None:
        self.labels_N = labels_N

    def encode(self, views: int = 0) -> Tensor:
        """Refuse, as a run does."""
        raise InputError("the adapter reads embeddings of images, and a run on sentences has none.")


def _for_device(settings: SentenceSettings) -> tuple[SentenceSettings, bool]:
    """Resolve precision=auto for the run's device, present or not; also return if it is a GPU."""
    placement = settings.placement
    on_gpu = placement.device.startswith("cuda") or (
        placement.device == "auto" and torch.cuda.is_available()
    )
    precision = pick_precision(placement.precision, torch.device("cuda") if on_gpu else CPU)
    placement = placement.model_copy(update={"precision": precision})
    return settings.model_copy(update={"placement": placement}), on_gpu


def _tested(settings: SentenceSettings, card: SentenceCard) -> int:
    """Return the number of tested examples."""
    if card.sizes is None:
        raise InputError(
            f"dataset={card.name}: its card has no sizes, the numbers of examples that a forecast "
            "needs. Add sizes: {train: ..., validation: ...} to the card."
        )
    left = card.sizes.train - settings.data.shots
    most = card.sizes.validation
    return max(1, min(most, left) if settings.data.split == "leftover" else most)


def _batch(settings: SentenceSettings, examples: int) -> tuple[Tensor, Tensor]:
    tokens_B3L = torch.zeros(examples, 3, settings.model.max_length, dtype=torch.int64)
    return tokens_B3L, torch.zeros(examples, dtype=torch.int64)


def _evaluation(settings: SentenceSettings, model: Model, tested: int) -> dict[str, Any]:
    """Classify one batch as the run does after training: memory, and FLOPs of all examples."""
    classifier = model.classifier
    batch = min(settings.evaluation.batch_size, tested)
    tokens_B3L, _ = _batch(settings, batch)
    peak, counter = PeakMemory(classifier, None, CPU), FlopCounter()
    classifier.eval()
    with counter, torch.inference_mode(), peak, model.precision.autocast():
        classifier(tokens_B3L)
    classifier.train()
    return {
        "test_images": tested,
        "evaluation_batch_size": batch,
        "evaluation_peak_memory_mib": peak.result()["peak_memory_mib"],
        "evaluation_flops": tested * counter.total // batch,
    }


def _training(settings: SentenceSettings, model: Model, on_gpu: bool) -> dict[str, Any]:
    """Take one full training step with an existing optimizer state: that has the peak of training.

    The FLOPs of the last, smaller batch of an epoch are counted separately.
    """
    optimizer = build_optimizer(settings.method.optimizer, model, on_gpu)
    schedule, examples = settings.schedule, settings.data.shots
    steps, full = schedule.max_steps, min(schedule.batch_size, examples)
    epoch, last = -(-examples // full), 0 if schedule.drop_last else examples % full
    if steps > 1:
        make_state(optimizer)
    small_steps, small = steps // epoch if last else 0, Flops()
    if small_steps:
        small, _ = counted_step(model, optimizer, _batch(settings, last), repeats_blocks=False)
    step, peak = counted_step(model, optimizer, _batch(settings, full), repeats_blocks=False)
    return {
        "memory": peak.result(),
        "batch_size": full,
        "forward_flops_per_step": step.forward,
        "backward_flops_per_step": step.backward,
        "flops_per_step": step.total,
        "training_flops": (steps - small_steps) * step.total + small_steps * small.total,
    }


def _disk_bytes(settings: SentenceSettings, model: Model, tested: int) -> dict[str, int]:
    """Return the bytes by kind of file; weights to download count as float32."""
    weights = 4 * sum(
        cast(int, value.numel()) for value in model.classifier.backbone.model.parameters()
    )
    place = find_place(settings.model.source, needs_files=False)
    rows = settings.schedule.max_steps * _HISTORY_ROW + tested * _PREDICTION_ROW
    rows += len(model.parameters) * _CHANGED_ROW + settings.data.shots * _DRAWN_ROW
    saved = weights if settings.placement.save is True else 0
    return {
        "weights_download_bytes": weights if place.folder is None else 0,
        "run_folder_bytes": rows + _SMALL_FILES + saved,
    }
