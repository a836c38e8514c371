"""Inputs that SO refuses, and the messages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0: must be a finite number, at least 0"),
        ({"lr": float("nan")}, r"lr=nan: must be a finite number"),
        ({"lr": "2e-4"}, r"lr='2e-4': must be a finite number"),
        ({"lr": torch.tensor(0.1)}, r"lr=tensor\(0\.1000\): must be a finite number"),
        ({"eps": -1e-8}, r"eps=-1e-08: must be a finite number, at least 0"),
        ({"eps": float("inf")}, r"eps=inf: must be a finite number"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1: must be a finite number, at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\): must be two numbers in \[0, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"betas=\(-0\.1, 0\.9\): must be two numbers"),
        ({"betas": (0.9,)}, r"betas=\(0\.9,\): must be two numbers"),
        ({"betas": 0.9}, r"betas=0\.9: must be two numbers"),
        ({"density_ratio": 0.0}, r"density_ratio=0\.0: must be a number in \(0, 1\]"),
        ({"density_ratio": 1.5}, r"density_ratio=1\.5: must be .* the sparsity is 1 minus it"),
        ({"density_ratio": -5e-4}, r"density_ratio=-0\.0005: must be a number in \(0, 1\]"),
        ({"density_ratio": float("nan")}, r"density_ratio=nan: must be a number in \(0, 1\]"),
        ({"density_ratio": None}, r"density_ratio=None: must be a number in \(0, 1\]"),
        ({"density_ratio": True}, r"density_ratio=True: must be a number in \(0, 1\]"),
        ({"T": -1}, r"T=-1: must be a whole number of steps, at least 0"),
        ({"T": 2.5}, r"T=2\.5: must be a whole number of steps"),
        ({"T": True}, r"T=True: must be a whole number of steps"),
        ({"least_entries": -1}, r"least_entries=-1: must be a whole number of entries, at least 0"),
        ({"least_entries": 0.5}, r"least_entries=0\.5: must be a whole number of entries"),
        ({"order": "prune"}, r"order=prune: must be prune_first or update_first\. Did you mean"),
        ({"order": None}, r"order=None: must be prune_first or update_first"),
        ({"bias_correction": "entry"}, r"bias_correction=entry: must be step or age or twice"),
        ({"gradient_selection": "none"}, r"must be random or importance or dense"),
        ({"moment_selection": "importence"}, r"or none\. Did you mean 'importance'"),
        ({"foreach": 1}, r"foreach=1: must be one of None, True, False"),
        ({"maximize": "no"}, r"maximize='no': must be one of True, False"),
        ({"seed": -1}, r"seed=-1: must be a whole number from 0 to 2\^63 - 1"),
        ({"seed": 2**63}, r"seed=9223372036854775808: must be a whole number"),
        ({"seed": 1.0}, r"seed=1\.0: must be a whole number"),
    ],
    ids=str,
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    param = nn.Parameter(torch.zeros(10))
    with pytest.raises(InputError, match=message):
        SO([param], **options)
    if "seed" not in options:
        with pytest.raises(InputError, match=message):
            SO([{"params": [param], **options}])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, dtype=torch.complex64), r"of shape \(3,\) is .*complex64: SO trains"),
        (torch.zeros(2, dtype=torch.int64), r"int64: SO trains strided tensors of torch\.float16"),
        (torch.zeros(2, 2).to_sparse(), r"torch\.sparse_coo and torch\.float32: SO trains strided"),
    ],
    ids=["complex", "integer", "sparse"],
)
def test_bad_tensors(tensor: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SO([tensor])


def test_a_refused_group_is_not_added() -> None:
    optimizer = SO([nn.Parameter(torch.zeros(10))])
    with pytest.raises(InputError, match="T=-2"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(10))], "T": -2})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("params", "exception", "message"),
    [
        ([], ValueError, "empty parameter list"),
        ([{"params": {nn.Parameter(torch.zeros(1))}}], TypeError, "ordered collections"),
        ([1.0], TypeError, "can only optimize Tensors"),
    ],
    ids=["empty", "set", "number"],
)
def test_torchs_own_checks_apply(params: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        SO(params)


def test_numpy_numbers_are_accepted() -> None:
    numpy = pytest.importorskip("numpy")
    param = nn.Parameter(torch.zeros(10))
    SO([param], lr=numpy.float64(0.1), T=numpy.int64(3), betas=[0.9, 0.99], seed=numpy.int64(2))


def test_a_group_has_no_seed() -> None:
    with pytest.raises(InputError, match="seed=3 in a parameter group"):
        SO([{"params": [nn.Parameter(torch.ones(3))], "seed": 3}])
