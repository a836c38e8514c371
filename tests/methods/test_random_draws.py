"""A generator that is global inside a context."""

import pytest
import torch

from so_clip.methods.random_draws import use_globally


def test_global_draws_come_from_the_generator_and_advance_it() -> None:
    generator, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    before = torch.random.get_rng_state()
    for _ in range(2):
        with use_globally(generator):
            drawn = torch.rand(5)
        assert torch.equal(drawn, torch.rand(5, generator=same))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(generator.get_state(), same.get_state())


def test_an_exception_restores_the_global_state() -> None:
    generator = torch.Generator().manual_seed(3)
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError), use_globally(generator):
        torch.rand(1) @ torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_only_the_generators_device_is_affected() -> None:
    generator, same = (torch.Generator("cuda").manual_seed(3) for _ in range(2))
    before = torch.random.get_rng_state(), torch.cuda.get_rng_state()
    with use_globally(generator):
        drawn = torch.rand(5, device="cuda")
        torch.rand(5)
    assert torch.equal(drawn, torch.rand(5, device="cuda", generator=same))
    assert not torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
