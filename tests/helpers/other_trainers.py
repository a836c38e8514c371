"""Small models and data for trainers that know nothing of SO, and checks of what SO moved."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.optim.support import entry_count

CLASSES = 3


def color_images(count: int = 12, side: int = 32) -> tuple[Tensor, Tensor]:
    """Return noise images [N, 3, side, side] whose brightest color is their label [N]."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 3, side, side, generator=draw) / 2
    images[torch.arange(count), labels] += 0.5
    return images, labels


def vectors(count: int = 64, width: int = 20) -> tuple[Tensor, Tensor]:
    """Return a pattern for each label with noise [N, width], and the labels [N]."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    patterns = torch.randn(CLASSES, width, generator=draw)
    return 2 * patterns[labels] + torch.randn(count, width, generator=draw), labels


def in_batches(data: tuple[Tensor, Tensor], size: int = 8, epochs: int = 1) -> list[list[Tensor]]:
    """Return batches of (values, labels), in order."""
    pairs = zip(data[0].split(size), data[1].split(size), strict=True)
    return [list(pair) for pair in pairs] * epochs


def network() -> nn.Module:
    """Return a classifier of `vectors`, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def small_resnet() -> nn.Module:
    """Return torchvision's ResNet of four blocks with random weights, always the same."""
    from torchvision.models.resnet import BasicBlock, ResNet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def sentences(count: int = 32) -> list[dict[str, Tensor]]:
    """Return token rows for `small_bert`; half of the tokens of a row show its label."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    rows = torch.randint(10, 100, (count, 12), generator=draw)
    rows[:, 1:7] = labels[:, None] + 3
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(rows, labels, strict=True)
    ]


def small_bert() -> nn.Module:
    """Return a BERT of two layers with random weights, always the same."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=16,
        num_labels=CLASSES,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


def transformers_trainer() -> type[Any]:
    """Return the Trainer of transformers.

    It uses the package `datasets` where that can be found, and the tests start in this repository:
    without the package, Python finds the repository's folder `datasets/`.
    """
    from transformers import trainer

    found = find_spec("datasets")
    if found is None or found.origin is None:
        trainer.is_datasets_available = lambda: False
    return trainer.Trainer


def trainer_arguments(folder: Path, **changes: Any) -> Any:
    """Return TrainingArguments for 24 steps on the CPU that log every loss."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "max_steps": 24,
        "per_device_train_batch_size": 8,
        "max_grad_norm": 0,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **settings | changes)


def losses_of(trainer: Any) -> list[float]:
    """Return the losses that a Trainer of transformers has logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lightning_trainer(folder: Path, **changes: Any) -> Any:
    """Return a quiet Trainer of Lightning for 24 steps on the CPU."""
    import pytorch_lightning

    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 24,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pytorch_lightning.Trainer(**settings | changes)


def lightning_task(module: nn.Module) -> type[Any]:
    """Return the class of a LightningModule of `module`, without an optimizer. It keeps losses."""
    import pytorch_lightning

    class Task(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            self.losses: list[float] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

    return Task


def assert_small_support(before: Sequence[Tensor], optimizer: SO, steps: int) -> None:
    """Check that SO moved entries of each tensor, and at most M for each draw of a support.

    Args:
        before: the tensors before training, in the optimizer's order.
        optimizer: after training.
        steps: it has made.
    """
    old = iter(before)
    for group in optimizer.param_groups:
        for param in group["params"]:
            entries = entry_count(param.numel(), group["density_ratio"])
            draws = math.ceil(steps / group["T"])
            moved = int((next(old) != param).sum())
            assert moved <= draws * entries
            assert param.grad is None or moved or param.numel() < 1000
    assert next(old, None) is None


def assert_falling(losses: Sequence[float]) -> None:
    """Check that the last quarter of the losses is a fifth below the first quarter."""
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < 0.8 * sum(losses[:quarter]), losses
