"""Names of devices become devices of this machine, or errors."""

import pytest
import torch

from so_clip.errors import InputError
from so_clip.runtime.device import cpu_threads, describe, pick_device

with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


def test_cpu_always_works():
    assert pick_device("cpu") == torch.device("cpu")
    assert describe(torch.device("cpu")) == "cpu"


def test_auto_is_cuda_if_the_machine_has_it():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_on_a_machine_without_it_is_an_error_with_a_way_out(name):
    with pytest.raises(InputError, match=rf"device={name}: .*device=cpu"):
        pick_device(name)


@pytest.mark.skipif(
    torch.backends.mps.is_available(), reason="needs a machine without an Apple GPU"
)
def test_mps_on_a_machine_without_it_is_an_error_with_a_way_out():
    with pytest.raises(InputError, match=r"device=mps: .*device=cpu"):
        pick_device("mps")


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")
def test_mps_is_used_and_described():
    assert pick_device("mps") == torch.device("mps")
    assert describe(torch.device("mps")) == "mps"


@with_cuda
def test_cuda_is_used_and_described():
    device = pick_device("cuda:0")
    assert device == torch.device("cuda:0")
    assert describe(device) == torch.cuda.get_device_name(0)


@with_cuda
def test_a_cuda_device_beyond_the_last_is_an_error():
    count = torch.cuda.device_count()
    with pytest.raises(InputError, match=f"there are {count} CUDA devices"):
        pick_device(f"cuda:{count}")


def test_the_number_of_threads_is_restored_after_the_context():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with cpu_threads(None):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
