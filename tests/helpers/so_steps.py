"""Parameters of many shapes, gradients for them, and steps of an optimizer."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = [(), (1,), (3,), (90,), (9, 10), (3, 5, 4), (2, 3, 5, 4)]


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """Return one tensor of each shape, and two that are not contiguous."""
    draw = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=draw) for shape in SHAPES]
    tensors.append(torch.randn(8, 11, generator=draw).t())
    tensors.append(torch.randn(4, 3, 2, 2, generator=draw).to(memory_format=torch.channels_last))
    return [nn.Parameter(tensor.to(dtype)) for tensor in tensors]


def gradients(params: list[nn.Parameter], steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    """Yield each step's gradients, of the parameters' dtype, some of them not contiguous."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        grads = [torch.randn(param.shape, generator=draw).to(param.dtype) for param in params]
        yield [grad.mT.contiguous().mT if grad.ndim == 2 else grad for grad in grads]


def run(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Step with gradients that are the same for every optimizer."""
    for grads in gradients(params, steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()


def mask(index_M: Tensor, numel: int) -> np.ndarray:
    """Return the dense mask of indices, which must have no duplicates."""
    assert index_M.dtype == torch.int64
    chosen = np.zeros(numel, dtype=bool)
    chosen[index_M.numpy()] = True
    assert chosen.sum() == len(index_M)
    return chosen
