"""One of two processes that train together: run as `-m tests.helpers.two_ranks RANK FOLDER`.

Each process has half of the batch and writes its results to FOLDER/RANK.pt for the tests: with all
trained weights sampled and no DistributedDataParallel ("plain"), with DistributedDataParallel for
the dense gradients ("ddp"), and both modes in one process with the whole batch.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from so_clip import SO
from so_clip.optim.sampled import SampledGradient, clip_grad_norm_, sampled_gradients


def build(mode: str) -> nn.Module:
    """Return a model; for "ddp", its biases are trained and have dense gradients."""
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 30), nn.Tanh())
    model.append(nn.Linear(30, 4)).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(generator=draw).mul_(0.3)
    for i in (0, 2, 4):
        model[i].bias.requires_grad_(mode == "ddp")
    if mode == "ddp":
        # This use of the weight outside of its layer has a dense gradient.
        model.register_forward_hook(lambda module, _, y: y * module[0].weight.square().sum())
    return model


def train(mode: str, ranks: int, rank: int = 0) -> dict[str, Any]:
    """Train for some steps and return the weights, supports and moments."""
    model = build(mode)
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = SO(trained, lr=1e-2, density_ratio=0.1, T=2)
    draw = torch.Generator().manual_seed(1)
    x_BI = torch.randn(8, 12, generator=draw).double()[rank::ranks]
    y_B = torch.randint(4, (8,), generator=draw)[rank::ranks]
    classifier: nn.Module = model
    if ranks > 1:
        handle = sampled_gradients(model, optimizer)
        if mode == "ddp":
            handle.exclude_from_ddp()
            classifier = DistributedDataParallel(model)
    for _ in range(7):
        optimizer.zero_grad()
        for part in (slice(0, None, 2), slice(1, None, 2)):  # two micro-batches
            nn.functional.cross_entropy(classifier(x_BI[part]), y_B[part]).backward()
        if ranks > 1:
            handle.all_reduce()
            assert all(type(model[i].weight.grad) is SampledGradient for i in (0, 2, 4))
        clip_grad_norm_(optimizer, 0.05)
        optimizer.step()
    weights = [param.detach() for param in model.parameters()]
    return {"weights": weights, "state": [optimizer.state[param] for param in trained]}


def main(rank: int, folder: Path) -> None:
    """Train in both modes, with two processes and with one."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2
    )
    results = {}
    for mode in ("plain", "ddp"):
        results[mode] = train(mode, 2, rank)
        results[f"{mode}, one process"] = train(mode, 1)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
