"""Layers that sample their gradients do what layers with whole gradients do, whatever surrounds
them, and never make the whole one."""

import copy
import itertools
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from so_clip import SO
from so_clip.errors import InputError
from so_clip.memory import PeakMemory
from so_clip.optim.sampled import SampledLinear, sampled_gradients
from tests.optim.storages import Storages

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module's parameters from a seed, by their order."""
    draw = generator(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.normal_(generator=draw).div_(max(1, param.shape[-1]) ** 0.5)
    return module


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Layers that take each method at density 0.05: gather, csr and columns."""
    return filled(
        nn.Sequential(
            nn.Linear(20, 30),
            nn.ReLU(inplace=True),  # what a function of our own returns must bear it
            nn.Linear(30, 40, bias=False),
            nn.GELU(),
            nn.Linear(40, 5),
        ).to(dtype)
    )


def twins(make=mlp, **options) -> tuple[tuple[nn.Module, SO], tuple[nn.Module, SO]]:
    """Two equal modules with equal optimizers, of which the second samples."""
    pairs = []
    for _ in range(2):
        module = make()
        settings = {"lr": 1e-2, "density_ratio": 0.05, "T": 3, **options}
        pairs.append((module, SO(module.parameters(), **settings)))
    sampled_gradients(*pairs[1])
    return pairs[0], pairs[1]


def assert_sampled(module: nn.Module, optimizer: SO, reference: nn.Module, rtol=1e-12, atol=1e-12):
    """Compare gradients: those of sampled layers on the support, all others whole."""
    sampled = {id(m.weight) for m in module.modules() if type(m) is SampledLinear}
    assert sampled
    for param, whole in zip(module.parameters(), reference.parameters(), strict=True):
        if id(param) in sampled:
            assert param.grad is None
            expected = whole.grad.take(optimizer.support(param))
            torch.testing.assert_close(param.sampled_grad, expected, rtol=rtol, atol=atol)
        else:
            assert getattr(param, "sampled_grad", None) is None
            torch.testing.assert_close(param.grad, whole.grad, rtol=rtol, atol=atol)


def assert_equal(module: nn.Module, reference: nn.Module, rtol=1e-12, atol=1e-12) -> None:
    for param, whole in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(param, whole, rtol=rtol, atol=atol)


def inputs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (6,), (0,), (2, 5), (3, 0), (2, 3, 4)]),
    columns=st.integers(1, 40),
    rows=st.integers(1, 40),
    bias=st.booleans(),
    density=st.floats(1e-6, 0.999),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_gradients_are_the_dense_ones_at_the_support(
    shape, columns, rows, bias, density, dtype, seed
):
    layer = filled(nn.Linear(columns, rows, bias=bias), seed).to(dtype)
    dense = copy.deepcopy(layer)
    optimizer = SO(layer.parameters(), density_ratio=density, seed=seed)
    sampled_gradients(layer, optimizer)
    x, x_dense = (inputs(*shape, columns, dtype=dtype).requires_grad_() for _ in range(2))
    y, y_dense = layer(x), dense(x_dense)
    grad = inputs(*y.shape, seed=seed, dtype=dtype)
    y.backward(grad)
    y_dense.backward(grad)
    # All but the weight's gradient is torch's own work; it chooses kernels by shape and strides.
    torch.testing.assert_close(y, y_dense)
    torch.testing.assert_close(x.grad, x_dense.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    support_M = optimizer.support(layer.weight)
    if support_M is None:  # a single weight is dense at any density
        assert torch.equal(layer.weight.grad, dense.weight.grad)
        return
    g_NO, x_NI = grad.reshape(-1, rows).double(), x.detach().reshape(-1, columns).double()
    exact_M, terms_M = (each.take(support_M) for each in (g_NO.T @ x_NI, g_NO.abs().T @ x_NI.abs()))
    # Sums over bfloat16 are in float32, hence closer than the dense gradient is.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    values_M = layer.weight.sampled_grad
    assert values_M.dtype == torch.promote_types(dtype, torch.float32)
    assert ((values_M - exact_M).abs() <= tolerance * terms_M).all()


def test_a_whole_network_and_an_input_that_needs_no_gradient():
    (dense, _), (sampled, optimizer) = twins()
    for module in (dense, sampled):
        module(inputs(4, 7, 20)).square().mean().backward()
    assert_sampled(sampled, optimizer, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sums_are_in_float32(dtype):
    layer = filled(nn.Linear(64, 48))
    optimizer = SO(layer.parameters(), density_ratio=0.1)
    sampled_gradients(layer, optimizer)
    x_NI, grad_NO = inputs(200, 64, dtype=torch.float32), inputs(200, 48, dtype=dtype)
    dense = copy.deepcopy(layer)
    for each in (layer, dense):
        with torch.autocast("cpu", dtype=dtype):
            y_NO = each(x_NI)
        assert y_NO.dtype == dtype
        y_NO.backward(grad_NO)
    support_M = optimizer.support(layer.weight)
    values_M = layer.weight.sampled_grad
    assert values_M.dtype == torch.float32
    # What layers see are x and the gradient in half precision. Of these, sums are float32's:
    g_NO, x_NI = grad_NO.double(), x_NI.to(dtype).double()
    terms_M = (g_NO.abs().T @ x_NI.abs()).take(support_M)
    assert ((values_M - (g_NO.T @ x_NI).take(support_M)).abs() <= 1e-6 * terms_M).all()
    # The dense gradient is rounded to half precision once more, after the sum.
    error_M = (dense.weight.grad.take(support_M) - values_M).abs()
    assert (error_M <= torch.finfo(dtype).eps * values_M.abs() + 1e-6 * terms_M).all()
    assert layer.bias.grad.dtype == torch.float32
    assert torch.equal(layer.bias.grad, dense.bias.grad)


def test_half_precision_weights_are_not_kept_from_forward_to_backward():
    layer = filled(nn.Linear(64, 64, bias=False))
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.02))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(inputs(2, 64, dtype=torch.float32))
        saved = y.grad_fn.next_functions[0][0].saved_tensors
    assert {tensor.data_ptr() for tensor in saved} >= {layer.weight.data_ptr()}
    assert sum(tensor.dtype == torch.bfloat16 for tensor in saved) == 1  # the input


@pytest.mark.parametrize(("density", "kept"), [(0.01, (50, 40)), (0.1, (50, 64)), (0.9, (50, 64))])
def test_only_the_columns_of_the_input_that_are_needed_are_kept(density, kept):
    layer = filled(nn.Linear(64, 64, bias=False))
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=density))
    y = layer(inputs(50, 64, dtype=torch.float32))
    assert y.grad_fn.next_functions[0][0].saved_tensors[0].shape == kept


def test_gradients_accumulate_until_zero_grad():
    (dense, by_dense), (sampled, optimizer) = twins()
    for set_to_none, step in itertools.product((True, False), range(2)):
        for seed in range(3):
            for module in (dense, sampled):
                module(inputs(4, 20, seed=seed)).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        if step:
            by_dense.step()
            optimizer.step()
        by_dense.zero_grad()
        optimizer.zero_grad(set_to_none)
        assert sampled[0].weight.sampled_grad is None


class Tied(nn.Module):
    """One weight in two layers, an embedding and a product; one layer twice; one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.unused = nn.Linear(16, 16)
        self.embed.weight = self.second.weight = self.first.weight
        filled(self.double())

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x = self.first(self.embed(tokens_BL))
        x = self.frozen(self.second(self.first(x).tanh()).tanh())
        return nn.functional.linear(x, self.first.weight)


def test_shared_weights_sum_and_frozen_ones_are_left_alone():
    modules = [Tied(), Tied()]
    optimizers = [SO([p for p in m.parameters() if p.requires_grad], 1e-2) for m in modules]
    (dense, sampled), (by_dense, optimizer) = modules, optimizers
    methods = sampled_gradients(sampled, optimizer).methods
    assert set(methods) == {"first.weight", "second.weight", "unused.weight"}
    assert type(sampled.frozen) is nn.Linear
    tokens_BL = torch.randint(16, (3, 5), generator=generator())
    for _ in range(12):
        for module, by in zip(modules, optimizers, strict=True):
            by.zero_grad()
            module(tokens_BL).square().mean().backward()
        # The embedding and the product have dense gradients, which the step adds.
        support_M, tied = optimizer.support(sampled.first.weight), sampled.first.weight
        both_M = tied.sampled_grad + tied.grad.take(support_M)
        torch.testing.assert_close(both_M, dense.first.weight.grad.take(support_M))
        assert sampled.unused.weight.grad is None
        assert getattr(sampled.unused.weight, "sampled_grad", None) is None
        assert sampled.frozen.weight.grad is None
        by_dense.step()
        optimizer.step()
        assert_equal(sampled, dense)


def test_ddp_is_told_of_a_shared_weight_by_the_name_it_knows():
    module = Tied()
    module._ddp_params_and_buffers_to_ignore = ["frozen.bias"]
    optimizer = SO([p for p in module.parameters() if p.requires_grad])
    sampled_gradients(module, optimizer).exclude_from_ddp()
    ignored = {"frozen.bias", "embed.weight", "unused.weight"}
    assert set(module._ddp_params_and_buffers_to_ignore) == ignored


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    (dense, by_dense), (sampled, optimizer) = twins()
    for seed in range(5):
        x = inputs(4, 20, seed=seed).requires_grad_()
        dense(x).square().mean().backward()
        middle = checkpoint(sampled[:3], x, use_reentrant=use_reentrant)
        checkpoint(sampled[3:], middle, use_reentrant=use_reentrant).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()


def test_compiled_once_without_breaks_over_redrawn_supports():
    torch._dynamo.reset()
    counters.clear()
    (dense, by_dense), (sampled, optimizer) = twins()
    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for seed in range(7):  # the support is drawn anew every 3
        for module in (dense, compiled):
            module(inputs(4, 20, seed=seed)).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1
    assert_equal(sampled, dense)


def test_compiled_under_autocast():
    torch._dynamo.reset()
    layers = [filled(nn.Linear(64, 48)) for _ in range(2)]
    for layer in layers:
        sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.1))
    plain, other = layers
    for each in (plain, torch.compile(other, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            each(inputs(20, 64, dtype=torch.float32)).float().square().mean().backward()
    torch.testing.assert_close(plain.weight.sampled_grad, other.weight.sampled_grad)


@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_fifty_steps_on_and_off(order):
    (dense, by_dense), (sampled, optimizer) = twins(order=order)
    x, target = inputs(64, 20), inputs(64, 5, seed=2)
    losses = []
    for _ in range(50):
        for module, by in ((dense, by_dense), (sampled, optimizer)):
            loss = nn.functional.mse_loss(module(x), target)
            losses.append(loss.item())
            by.zero_grad()
            loss.backward()
            by.step()
    assert losses[-1] < 0.9 * losses[0]
    assert losses[0::2] == pytest.approx(losses[1::2], rel=1e-12)
    assert_equal(sampled, dense, rtol=1e-9, atol=1e-12)


def test_the_dense_gradient_is_never_allocated():
    peaks, sizes = [], []
    for sampled in (False, True):
        layer = filled(nn.Linear(500, 700, bias=False))
        optimizer = SO(layer.parameters(), density_ratio=5e-4, T=2)
        if sampled:
            sampled_gradients(layer, optimizer)
        peak = PeakMemory(layer, optimizer, CPU)
        with peak, Storages(layer.weight) as storages:
            for _ in range(4):
                layer(inputs(9, 500, dtype=torch.float32)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        peaks.append(peak.result())
        sizes.append(storages.sizes)
    dense_bytes = 500 * 700 * 4
    assert dense_bytes in sizes[0]
    assert max(sizes[1]) < dense_bytes / 10
    off, on = peaks
    assert off["gradients_mib"] == pytest.approx(dense_bytes / 2**20)
    assert on["gradients_mib"] <= 175 * 4 / 2**20
    assert on["peak_memory_mib"] < off["peak_memory_mib"] - 0.9 * dense_bytes / 2**20


def test_sampled_gradients_count_as_gradients():
    layer = nn.Linear(100, 100, bias=False)
    optimizer = SO(layer.parameters(), density_ratio=0.1)
    sampled_gradients(layer, optimizer)
    peak = PeakMemory(layer, optimizer, CPU)
    with peak:
        layer(torch.ones(1, 100)).sum().backward()
        optimizer.step()  # where the peak is
    assert peak.result()["gradients_mib"] == 1000 * 4 / 2**20


def test_no_memory_is_held_for_a_layer_beyond_the_optimizers_state():
    layer = nn.Linear(64, 64)
    optimizer = SO(layer.parameters(), density_ratio=0.05)
    sampled_gradients(layer, optimizer)
    assert layer.sampling.support_M is optimizer.support(layer.weight)
    assert layer.sampling.leaf_M.untyped_storage().nbytes() == 4


def test_only_linear_layers_that_the_optimizer_samples_are_taken():
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


def test_where_nothing_is_sampled_all_is_as_before():
    layer = nn.Linear(4, 4)
    optimizer = SO(layer.parameters(), density_ratio=1.0)
    assert sampled_gradients(layer, optimizer).methods == {}
    scaler = torch.amp.GradScaler("cpu")  # sees all there is
    scaler.scale(layer(torch.ones(2, 4)).sum()).backward()
    assert layer.weight.grad is not None
    scaler.step(optimizer)


def test_removing_leaves_nothing_behind():
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


def test_state_dicts_do_not_change_and_supports_follow_one_that_is_loaded():
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
        assert all(param.grad is not None for param in other.parameters())


def test_weights_that_stand_in_for_a_layers_own_have_whole_gradients():
    _, (sampled, _) = twins()
    others = {name: p.detach().clone().requires_grad_() for name, p in sampled.named_parameters()}
    torch.func.functional_call(sampled, others, inputs(4, 20)).sum().backward()
    assert all(param.grad is not None for param in others.values())
    assert getattr(sampled[0].weight, "sampled_grad", None) is None


def test_evaluation_and_a_weight_frozen_for_a_while():
    _, (sampled, _) = twins()
    sampled[0].weight.requires_grad_(False)
    sampled(inputs(4, 20)).sum().backward()
    assert sampled[0].weight.grad is None
    assert getattr(sampled[0].weight, "sampled_grad", None) is None
    assert sampled[0].bias.grad is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not sampled(inputs(4, 20)).requires_grad


def test_a_type_that_does_not_fit_meets_torchs_own_error():
    _, (sampled, _) = twins()
    with pytest.raises(RuntimeError, match="dtype"):
        sampled(inputs(4, 20, dtype=torch.float32))


def test_gradients_on_an_outdated_support_are_refused():
    layer = nn.Linear(40, 40, bias=False)
    optimizer = SO(layer.parameters(), density_ratio=0.01, T=1)
    sampled_gradients(layer, optimizer)
    outdated = r"drawn anew .* Call optimizer\.zero_grad"
    layer(torch.ones(2, 40)).sum().backward()
    optimizer.step()  # T=1: draws anew
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


def test_on_cuda_the_host_never_waits():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    module = mlp(torch.float32).cuda()
    optimizer = SO(module.parameters(), density_ratio=0.05, T=2)
    sampled_gradients(module, optimizer)
    x = inputs(4, 20, dtype=torch.float32).cuda()
    for step in range(6):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            module(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
