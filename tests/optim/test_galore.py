"""GaLore on matrices and vectors, its settings and its state."""

import io

import pytest
import torch

from so_clip.errors import InputError
from so_clip.optim.galore import PROJECTIONS, galore

pytest.importorskip("pytorch_optimizer", reason="the extra `methods` is not installed")


def test_matrices_have_low_rank_updates_and_vectors_have_full_ones():
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
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        galore([torch.nn.Parameter(torch.zeros(3, 3))], **options)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_its_state_holds_tensors_and_numbers_and_resumes(projection):
    draw = torch.Generator().manual_seed(0)
    grads = torch.randn(8, 12, 20, generator=draw)

    def steps(optimizer, matrix, some):
        for grad in some:
            matrix.grad = grad.clone()
            optimizer.step()

    def made(values):
        matrix = torch.nn.Parameter(values.clone())
        return galore(
            [matrix], lr=0.1, rank=2, update_proj_gap=3, projection_type=projection
        ), matrix

    optimizer, matrix = made(torch.zeros(12, 20))
    steps(optimizer, matrix, grads[:4])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other, again = made(matrix.detach())
    other.load_state_dict(torch.load(file, weights_only=True))
    for item, its in ((optimizer, matrix), (other, again)):
        steps(item, its, grads[4:])
    assert torch.equal(matrix, again)


@pytest.mark.parametrize("before", [torch.float32, torch.float64])
def test_its_state_serves_weights_of_another_precision(before):
    after = torch.float64 if before == torch.float32 else torch.float32
    draw = torch.Generator().manual_seed(0)
    gradient = torch.randn(12, 20, generator=draw, dtype=torch.float64)
    weights = [torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype)) for dtype in (before, after)]
    one, other = (galore([weight], lr=0.1, rank=2) for weight in weights)
    for optimizer, weight in ((one, weights[0]), (other, weights[1])):
        if optimizer is other:
            weight.data.copy_(weights[0].data)
            optimizer.load_state_dict(one.state_dict())
        for _ in range(2):
            weight.grad = gradient.to(weight.dtype)
            optimizer.step()
    assert {v.dtype for v in other.state[weights[1]].values() if torch.is_tensor(v)} == {after}
    assert weights[1].isfinite().all()


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (8, 1, 3, 3)])
def test_a_convolution_is_stepped_as_its_matrix(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = torch.nn.Parameter(values.clone().to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(values.flatten(1).clone())
    one, other = (galore([param], lr=0.1, rank=2, weight_decay=0.1) for param in (weight, matrix))
    for step in range(3):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        weight.grad, matrix.grad = grad.clone(), grad.flatten(1)
        one.step()
        other.step()
        assert weight.shape == weight.grad.shape == shape
        torch.testing.assert_close(weight.flatten(1), matrix)
    assert one.state[weight]["exp_avg"].numel() == 2 * max(matrix.shape)
    one.load_state_dict(one.state_dict())
    weight.grad = grad
    one.step()
