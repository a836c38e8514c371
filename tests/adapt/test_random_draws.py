"""Lending a generator: its numbers, and nobody else's."""

import pytest
import torch

from so_clip.adapt.random_draws import use_globally


def test_draws_are_the_generators_and_move_it_on() -> None:
    lent, own = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    before = torch.random.get_rng_state()
    for _ in range(2):
        with use_globally(lent):
            drawn = torch.rand(5)
        assert torch.equal(drawn, torch.rand(5, generator=own))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(lent.get_state(), own.get_state())


def test_an_exception_gives_the_global_state_back() -> None:
    lent = torch.Generator().manual_seed(3)
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError), use_globally(lent):
        torch.rand(1) @ torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_only_the_generators_own_device_is_concerned() -> None:
    lent, own = (torch.Generator("cuda").manual_seed(3) for _ in range(2))
    before = torch.random.get_rng_state(), torch.cuda.get_rng_state()
    with use_globally(lent):
        drawn = torch.rand(5, device="cuda")
        torch.rand(5)
    assert torch.equal(drawn, torch.rand(5, device="cuda", generator=own))
    assert not torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
