"""The memory of SO's step at the shapes of ViT-B/16's 96 matrices."""

import pytest
import torch

from so_clip.optim.so import SO
from so_clip.runtime.peak_memory import PeakMemory

CPU = torch.device("cpu")


def _matrices(share: int) -> torch.nn.ParameterList:
    """Return matrices of one in `share` blocks of each tower: 12 D^2 weights a block."""
    matrices = torch.nn.ParameterList()
    for width in (768, 512):
        for _ in range(12 // share):
            for shape in ((3, 1), (1, 1), (4, 1), (1, 4)):
                size = [width * side for side in shape]
                matrices.append(torch.nn.Parameter(torch.zeros(*size)))
    return matrices


@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_a_hundredth_of_all_entries_fits_in_a_gigabyte(order):
    share = 4  # one in 4 blocks, for speed; memory is proportional to the entries
    model = _matrices(share)
    optimizer = SO(model.parameters(), density_ratio=1e-2, T=1, order=order)
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    peak = PeakMemory(model, optimizer, CPU)
    with peak:
        for _ in range(2):
            optimizer.step()
    memory = peak.result()
    weights = sum(parameter.numel() for parameter in model)
    entries = sum(state["size"] for state in optimizer.state.values())
    assert entries == pytest.approx(weights / 100, rel=1e-3)
    assert memory["optimizer_state_mib"] * 2**20 <= 40 * entries
    # Gradients existed before the measurement; the rest is state and temporaries.
    beside = memory["peak_memory_mib"] - memory["weights_mib"] - memory["gradients_mib"]
    assert share * beside < 954, "1 GB, in MiB"
