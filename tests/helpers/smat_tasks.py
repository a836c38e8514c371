"""A small float64 backbone, tasks of random images, and experts over it."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from so_clip.clip.backbone import Backbone
from so_clip.clip.load import load_backbone
from so_clip.clip.roles import Part
from so_clip.config.settings import Settings
from so_clip.runtime.precision import Precision
from so_clip.smat.checkpoint_file import save_checkpoint
from so_clip.smat.model import Smat
from so_clip.smat.options import SmatOptions, TrainingOptions
from so_clip.smat.task import Task
from so_clip.smat.training import MetaTraining

FP32 = Precision("fp32", torch.device("cpu"))  # without autocast; float64 stays float64
MATRICES = {"attention_in", "attention_out", "mlp_in", "mlp_out", "convolution"}
_FOLDER = tempfile.TemporaryDirectory(prefix="smat-")  # of the checkpoints for the battery


def tiny_backbone(blocks: int = 2, dtype: torch.dtype = torch.float64) -> Backbone:
    """Return the embedded CLIP with the first `blocks` blocks of its image tower."""
    backbone = load_backbone("tiny", "embedded")
    resblocks = backbone.model.visual.transformer.resblocks
    backbone.model.visual.transformer.resblocks = nn.ModuleList([*resblocks][:blocks])
    return backbone.to(dtype)


def vision_parts(backbone: Backbone) -> list[Part]:
    """Return SO's matrices of the image tower."""
    return [
        part for part in backbone.role_map() if part.tower == "vision" and part.roles & MATRICES
    ]


def random_task(
    backbone: Backbone, seed: int = 0, ways: int = 3, shots: int = 2, queries: int = 3
) -> Task:
    """Return a task with noise around a random picture of each class."""
    draws = torch.Generator().manual_seed(seed)
    centre_NCHW = torch.randint(0, 256, (ways, 3, 32, 32), generator=draws)

    def images(count: int) -> torch.Tensor:
        repeated = centre_NCHW.repeat_interleave(count, dim=0)
        noise = torch.randint(-60, 61, repeated.shape, generator=draws)
        return (repeated + noise).clamp(0, 255).to(torch.uint8)

    images_SCHW, images_QCHW = images(shots), images(queries)
    class_ND = torch.randn(ways, backbone.dimensions, generator=draws, dtype=torch.float64)
    return Task(
        images_SCHW,
        torch.arange(ways).repeat_interleave(shots),
        images_QCHW,
        torch.arange(ways).repeat_interleave(queries),
        nn.functional.normalize(class_ND, dim=-1).to(backbone.mean.dtype),
        ways,
    )


def small_smat(backbone: Backbone, seed: int = 0, **options: Any) -> Smat:
    """Return experts over the backbone's matrices, in its dtype."""
    options = {"experts": 2} | options
    smat = Smat(vision_parts(backbone), backbone.dimensions, SmatOptions(**options), seed)
    return smat.to(backbone.mean.dtype)


def training(backbone: Backbone, smat: Smat, **options: Any) -> MetaTraining:
    """Return a meta-training in float32 or float64, as the backbone is."""
    options = {"tasks": 100, "tasks_per_update": 2} | options
    return MetaTraining(backbone, smat, TrainingOptions(**options), FP32, seed=0)


@cache
def shared_backbone() -> Backbone:
    """Return one float64 backbone for tests that do not change it."""
    return tiny_backbone()


@torch.no_grad()
def shake(smat: Smat, seed: int = 0, spread: float = 0.02) -> None:
    """Give the shared update values, so that masks and the router have gradients."""
    draws = torch.Generator().manual_seed(seed)
    for delta in smat.experts.delta:
        delta.copy_(spread * torch.randn(delta.shape, generator=draws, dtype=delta.dtype))


def random_checkpoint(file: Path, backbone: Backbone, weights_sha256: str, **options: Any) -> Path:
    """Write a checkpoint of experts that were not trained, with an update that matters."""
    smat = small_smat(backbone, **({"granularity": "row"} | options)).float()
    shake(smat, spread=0.05)
    save_checkpoint(
        file, smat, architecture="small", weights_sha256=weights_sha256, about={"sources": []}
    )
    return file


def with_smat_checkpoint(settings: Settings, backbone: Backbone) -> Settings:
    """Return settings with a checkpoint of this backbone, if their method needs one."""
    adapter = settings.method.adapter
    if adapter is None or adapter.options.get("checkpoint", "") is not None:
        return settings
    weights_sha256 = backbone.weights_sha256
    file = Path(_FOLDER.name) / f"{weights_sha256[:16]}.safetensors"
    if not file.exists():
        random_checkpoint(file, backbone, weights_sha256)
    options = adapter.options | {"checkpoint": str(file)}
    method = settings.method.model_copy(
        update={"adapter": adapter.model_copy(update={"options": options})}
    )
    return settings.model_copy(update={"method": method})
