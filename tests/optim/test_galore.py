"""GaLore: pytorch-optimizer's, over matrices and what is none."""

import pytest
import torch

from so_clip.errors import InputError
from so_clip.optim.galore import galore

pytest.importorskip("pytorch_optimizer", reason="the extra `methods` is not installed")


def test_matrices_move_along_few_directions_and_vectors_freely():
    draw = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(12, 20))
    vector = torch.nn.Parameter(torch.zeros(7))
    optimizer = galore([matrix, vector], lr=0.1, rank=2, scale=1.0)
    for _ in range(5):
        matrix.grad = torch.randn(matrix.shape, generator=draw)
        vector.grad = torch.randn(vector.shape, generator=draw)
        optimizer.step()
    # One projection serves all five steps.
    assert torch.linalg.matrix_rank(matrix.detach(), atol=1e-4) == 2
    assert bool(vector.ne(0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "optimizer.rank=0"),
        ({"rank": 1.5}, "optimizer.rank=1.5"),
        ({"update_proj_gap": 0}, "update_proj_gap=0"),
        ({"projection_type": "up"}, "projection_type=up: must be std"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        galore([torch.nn.Parameter(torch.zeros(3, 3))], **options)
