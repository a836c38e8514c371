"""The router: expert weights, and no effect of the order of classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import RelaxedBernoulli

from so_clip.smat.options import SmatOptions
from so_clip.smat.router import Router, expert_weights

D = 16


def _router(**options) -> Router:
    router = Router(D, SmatOptions(**options), torch.Generator().manual_seed(0))
    with torch.no_grad():
        router.skills.normal_(generator=torch.Generator().manual_seed(1))
    return router.double().eval()


def _classes(ways: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return (
        torch.randn(ways, D, generator=draws, dtype=torch.float64),
        torch.randn(ways, D, generator=draws, dtype=torch.float64),
    )


@given(st.integers(1, 9), st.integers(0, 100), st.booleans())
def test_the_order_of_classes_has_no_effect(ways, seed, has_text):
    router = _router()
    prototype_ND, class_ND = _classes(ways, seed)
    order = torch.randperm(ways, generator=torch.Generator().manual_seed(seed))
    text, moved = (class_ND, class_ND[order]) if has_text else (None, None)
    assert torch.allclose(router(prototype_ND, text), router(prototype_ND[order], moved))


def test_the_released_task_embedding_is_that_of_the_first_class():
    router = _router(task_embedding="first_class", text_tokens=False)
    prototype_ND, _ = _classes(4, 0)
    first = router(prototype_ND, None)
    assert torch.allclose(first, router(prototype_ND[[0, 3, 2, 1]], None))
    assert not torch.allclose(first, router(prototype_ND[[1, 0, 2, 3]], None))


def test_texts_count():
    router = _router()
    prototype_ND, class_ND = _classes(4, 0)
    assert not torch.allclose(router(prototype_ND, class_ND), router(prototype_ND, -class_ND))
    assert not torch.allclose(router(prototype_ND, class_ND), router(prototype_ND, None))


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.floats(0.5, 5), st.booleans())
def test_expert_weights_sum_to_one(logits, temperature, drawn):
    generator = torch.Generator().manual_seed(0) if drawn else None
    expert_M = expert_weights(torch.tensor(logits), temperature, generator)
    assert float(expert_M.sum()) == pytest.approx(1, abs=1e-5)
    assert float(expert_M.min()) >= 0


def test_draws_are_those_of_a_relaxed_bernoulli_distribution():
    logits, temperature = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 0.7
    draws = torch.Generator().manual_seed(0)
    found = torch.stack([expert_weights(logits, temperature, draws) for _ in range(4000)])
    torch.manual_seed(0)
    wanted = RelaxedBernoulli(torch.tensor(temperature), logits=logits).sample((4000,))
    wanted = wanted / wanted.sum(dim=1, keepdim=True)
    assert torch.allclose(found.mean(dim=0), wanted.mean(dim=0), atol=0.02)
    assert torch.allclose(found.std(dim=0), wanted.std(dim=0), atol=0.02)


def test_first_values_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second = _router(), _router()
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_linear_layers_have_a_spectral_norm_of_one():
    router = Router(D, SmatOptions(), torch.Generator().manual_seed(0))
    router(torch.randn(3, D), None)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        weight = router.block.get_submodule(name).weight
        norm = torch.linalg.matrix_norm(weight.detach(), ord=2)
        assert float(norm) == pytest.approx(1, abs=0.1)
