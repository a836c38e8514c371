"""The layers that are sampled, and their life: copies, state dicts, removal."""

import copy
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip import SO
from so_clip.errors import InputError
from so_clip.optim.sampled import SampledLinear, sampled_gradients
from so_clip.optim.sampled_record import sampled_record
from tests.helpers.sampled_pairs import assert_equal, filled, inputs, twins


def test_only_linear_layers_with_a_support_are_sampled():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    def linear() -> nn.Linear:
        return nn.Linear(400, 400, device="meta")

    module = nn.ModuleDict(
        {
            "plain": linear(),
            "doubled": Doubled(400, 400, device="meta"),
            "attention": nn.MultiheadAttention(400, 2, device="meta"),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(400, 400)),
            "elsewhere": linear(),
            "dense": linear(),
            "important": linear(),
            "whole": linear(),
            "above": linear(),
            "frozen": linear(),
            "small": nn.Linear(40, 40, device="meta"),
        }
    ).to_empty(device="cpu")
    module["frozen"].weight.requires_grad_(False)
    own = {
        "dense": {"density_ratio": 1.0},
        "important": {"gradient_selection": "importance"},
        "whole": {"gradient_selection": "dense"},
        "above": {"density_ratio": 0.15},
    }
    groups = [
        {"params": list(child.parameters()), **own.get(name, {})}
        for name, child in module.items()
        if name != "elsewhere"
    ]
    optimizer = SO(groups, density_ratio=0.001)
    with sampled_gradients(module, optimizer) as handle:
        assert handle.methods == {
            "plain.weight": "columns",
            "above.weight": "rows",
            "small.weight": "columns",
        }
        assert type(module["plain"]) is SampledLinear
    with sampled_gradients(module, optimizer, always=False) as handle:
        assert handle.methods == {"plain.weight": "columns"}
    assert type(module["plain"]) is type(module["above"]) is nn.Linear


def test_a_layer_by_itself_has_the_name_weight():
    layer = nn.Linear(40, 40)
    assert [*sampled_gradients(layer, SO(layer.parameters())).methods] == ["weight"]


def test_an_optimizer_without_supports_is_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(InputError, match="AdamW reads whole gradients"):
        sampled_gradients(layer, torch.optim.AdamW(layer.parameters()))


def test_without_a_support_nothing_changes():
    layer = nn.Linear(4, 4)
    optimizer = SO(layer.parameters(), density_ratio=1.0)
    assert sampled_gradients(layer, optimizer).methods == {}
    layer(torch.ones(2, 4)).sum().backward()
    assert type(layer.weight.grad) is torch.Tensor


def test_remove_restores_the_layer_and_the_optimizer():
    layer = nn.Linear(40, 40)
    optimizer = SO(layer.parameters(), density_ratio=0.01)
    before = set(vars(layer)), set(vars(optimizer)), repr(layer)
    handle = sampled_gradients(layer, optimizer)
    layer(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    gone = weakref.ref(layer.sampling)
    handle.remove()
    handle.remove()
    assert gone() is None
    assert (set(vars(layer)), set(vars(optimizer)), repr(layer)) == before
    assert not optimizer._optimizer_step_post_hooks
    optimizer.zero_grad()
    layer(torch.ones(2, 40)).sum().backward()
    assert layer.weight.grad is not None
    optimizer.step()


def test_state_dicts_do_not_change_and_a_loaded_one_sets_the_supports():
    (dense, by_dense), (sampled, optimizer) = twins()
    assert [*sampled.state_dict()] == [*dense.state_dict()]
    for _ in range(4):
        sampled(inputs(4, 20)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    by_dense.load_state_dict(optimizer.state_dict())
    dense.load_state_dict(sampled.state_dict())
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(4):
        for module, by in ((dense, by_dense), (sampled, optimizer)):
            module(inputs(4, 20)).square().mean().backward()
            by.step()
            by.zero_grad()
    assert_equal(sampled, dense)


def test_copies_have_whole_gradients():
    _, (sampled, _) = twins()
    sampled(inputs(4, 20)).sum().backward()
    for other in (copy.deepcopy(sampled), pickle.loads(pickle.dumps(sampled))):
        other.zero_grad()
        other(inputs(4, 20)).sum().backward()
        assert all(type(param.grad) is torch.Tensor for param in other.parameters())


def test_weights_of_a_functional_call_have_whole_gradients():
    _, (sampled, _) = twins()
    others = {name: p.detach().clone().requires_grad_() for name, p in sampled.named_parameters()}
    torch.func.functional_call(sampled, others, inputs(4, 20)).sum().backward()
    assert all(type(param.grad) is torch.Tensor for param in others.values())
    assert sampled[0].weight.grad is None


def test_evaluation_and_a_frozen_weight_need_no_gradient():
    _, (sampled, _) = twins()
    sampled[0].weight.requires_grad_(False)
    sampled(inputs(4, 20)).sum().backward()
    assert sampled[0].weight.grad is None
    assert sampled[0].bias.grad is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not sampled(inputs(4, 20)).requires_grad


def test_a_wrong_dtype_raises_torchs_error():
    _, (sampled, _) = twins()
    with pytest.raises(RuntimeError, match="dtype"):
        sampled(inputs(4, 20, dtype=torch.float32))


def test_gradients_on_an_outdated_support_are_refused():
    layer = nn.Linear(40, 40, bias=False)
    optimizer = SO(layer.parameters(), density_ratio=0.01, T=1)
    sampled_gradients(layer, optimizer)
    outdated = r"drawn again .* Call optimizer\.zero_grad"
    layer(torch.ones(2, 40)).sum().backward()
    optimizer.step()  # T=1: draws again
    late = layer(torch.ones(2, 40)).sum()
    optimizer.load_state_dict(optimizer.state_dict())
    late.backward()
    with pytest.raises(RuntimeError, match=outdated):
        optimizer.step()
    optimizer.zero_grad()
    layer(torch.ones(2, 40)).sum().backward()
    optimizer.step()


def test_second_derivatives_are_refused():
    layer = nn.Linear(40, 40, bias=False)
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.01))
    x = torch.ones(2, 40, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class _NeverCalls(nn.Module):
    """Multiplies by the weight of a layer without calling it, as timm's EVA does."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.used, self.table = (
            nn.Linear(40, 64),
            nn.Linear(64, 10),
            nn.Embedding(7, 64),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.called(x) + self.table.weight.sum(0), self.used.weight)


def test_a_layer_that_is_never_called_keeps_its_gradient_and_is_named():
    dense, model = filled(_NeverCalls()), filled(_NeverCalls())
    plain, optimizer = (
        SO([p for p in item.parameters() if p.ndim > 1], density_ratio=0.01)
        for item in (dense, model)
    )
    handle = sampled_gradients(model, optimizer)
    for item, its in ((dense, plain), (model, optimizer)):
        for parameter in item.parameters():
            parameter.grad = torch.zeros_like(parameter)  # a step without a forward pass
        its.step()
        its.zero_grad()
    assert [*handle.methods] == ["called.weight", "used.weight", "table.weight"]
    for step in range(3):
        for item, its in ((dense, plain), (model, optimizer)):
            item(inputs(5, 40, seed=step, dtype=torch.float32)).square().mean().backward()
            its.step()
            its.zero_grad()
    assert_equal(model, dense, rtol=1e-5, atol=1e-6)
    assert [*handle.methods] == ["called.weight"]
    assert type(model.used) is nn.Linear
    assert sampled_record(optimizer, model.parameters()) == {
        "trained_matrices": 3,
        "sampled_matrices": 1,
        "whole_gradients": "2: the weight is used without a call of its layer",
    }
    no_handle = sampled_record(plain, dense.parameters())
    assert (no_handle["trained_matrices"], no_handle["sampled_matrices"]) == (3, 0)
    assert "whole gradients" in str(no_handle["whole_gradients"])
    assert sampled_record(None, [])["whole_gradients"] is None


def test_the_reasons_of_whole_gradients():
    model = nn.Sequential(nn.Linear(40, 40), nn.Conv2d(4, 4, 3), nn.Linear(8, 8))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    groups = [{"params": matrices[:2]}, {"params": matrices[2:], "density_ratio": 1}]
    optimizer = SO(groups, density_ratio=0.01)
    sampled_gradients(model, optimizer)
    assert sampled_record(optimizer, matrices)["whole_gradients"] == (
        "1: the whole product should be faster; 1: the optimizer reads the whole gradient"
    )
