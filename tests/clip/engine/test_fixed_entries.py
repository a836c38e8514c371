"""Trained entries have the gradients of dense weights in float64, whatever the memory mode."""

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.fixed_entries import FixedEntries, fixed_entries
from so_clip.methods.entries import Entries
from so_clip.optim.sampled_layers import SampledConv2d, SampledLinear
from tests.helpers.small_families import family_cases, small_backbone, small_images
from tests.helpers.tiny_classifiers import IMAGES_BCHW, PROMPTS, classifier


def classifier_of(family: str, memory: Memory = "fast") -> Classifier:
    backbone = small_backbone(family).double()
    backbone.memory = memory
    return Classifier(backbone, backbone.tokenize(list(PROMPTS)))


def loss_of(made: Classifier) -> Tensor:
    """Return a loss that weighs every logit differently."""
    logits_BK = made(small_images(made.backbone, 3))
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(logits_BK.shape, generator=draw, dtype=torch.float64)
    return (logits_BK * weights).sum()


def moved(adapter: Entries, made: Classifier) -> dict[str, nn.Parameter]:
    """Open the entries and give them values, as a step would."""
    opened = adapter(made)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in opened.values():
            value += 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    adapter.after_step(made, 1)
    return opened


@pytest.mark.parametrize("family", family_cases(("vit",)))
def test_gradients_are_entries_of_the_dense_ones_in_every_memory_mode(family: str) -> None:
    roles = ["matrices", "norm", "bias", "position_embedding"]
    groups = {frozenset(part.roles) for part in small_backbone(family).role_map()}
    roles = [role for role in roles if role == "matrices" or any(role in g for g in groups)]
    layers = set()
    for memory in MEMORY_MODES:
        made = classifier_of(family, memory)
        opened = moved(Entries(roles=roles, count=3000, seed=1, sampled_gradients=True), made)
        dense = classifier_of(family, "fast")
        dense.load_state_dict(made.state_dict())
        named = dense.named()
        entries = [*fixed_entries(made.backbone.model)]
        for item in entries:
            named[item.name].requires_grad_(True)
        loss, expected = loss_of(made), loss_of(dense)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        loss.backward()
        expected.backward()
        for item in entries:
            layers.add(type(item.owner))
            grad = named[item.name].grad
            assert item.weight.grad is None
            torch.testing.assert_close(
                opened[item.values_name].grad,
                grad.take(item.support_M),
                rtol=1e-8,
                atol=1e-10 * float(grad.abs().max()),
            )
    assert SampledLinear in layers
    assert len(layers) > 1, "no entry of a norm or embedding is trained"


@pytest.mark.parametrize(("groups", "count", "kind"), [(1, 2, SampledConv2d), (2, 60, nn.Conv2d)])
def test_entries_of_a_convolution(groups: int, count: int, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups)).double()
    dense = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups)).double()
    index_M = torch.randperm(model[0].weight.numel())[:count].sort().values
    item = FixedEntries(model.requires_grad_(False), "0.weight", index_M)
    with torch.no_grad():
        item.values_M.normal_()
    item.write()
    dense.load_state_dict(model.state_dict())
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    for each in (model, dense):
        each(x).square().sum().backward()
    assert type(model[0]) is kind
    torch.testing.assert_close(item.values_M.grad, dense[0].weight.grad.take(index_M))


def test_gradients_of_two_backward_passes_add_up() -> None:
    made = classifier_of("vit")
    opened = Entries(roles=["matrices", "norm"], count=500)(made)
    loss_of(made).backward()
    once = {name: value.grad.clone() for name, value in opened.items()}
    loss_of(made).backward()
    assert all(torch.allclose(opened[name].grad, 2 * grad) for name, grad in once.items())


def test_a_removed_set_leaves_the_plain_layer_with_its_weight() -> None:
    made = classifier()
    names = {*made.state_dict()}
    adapter = Entries(roles=["matrices", "norm"], count=500)
    moved(adapter, made)
    with torch.no_grad():
        logits_BK = made(IMAGES_BCHW)
    assert {*made.state_dict()} == names
    adapter.merge(made)
    assert not any("values" in name for name, _ in made.named_parameters())
    assert not any("_index" in name for name, _ in made.named_buffers())
    assert not any(isinstance(module, SampledLinear) for module in made.modules())
    with torch.no_grad():
        assert torch.equal(made(IMAGES_BCHW), logits_BK)


def test_training_equals_dense_adamw_with_masked_gradients() -> None:
    adapter, made, dense = (
        Entries(roles=["matrices", "norm"], count=400),
        classifier(),
        classifier(),
    )
    opened = adapter(made)
    entries = [*fixed_entries(made.backbone.model)]
    named = dense.named()
    trained = [named[item.name].requires_grad_(True) for item in entries]
    small = torch.optim.AdamW(opened.values(), lr=1e-2, weight_decay=0)
    large = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    for step in range(1, 6):
        for each, optimizer in ((made, small), (dense, large)):
            optimizer.zero_grad()
            each(IMAGES_BCHW).logsumexp(1).sum().backward()
        for item, weight in zip(entries, trained, strict=True):
            mask = torch.zeros_like(weight).put_(
                item.support_M, torch.ones(len(item.support_M)).double()
            )
            weight.grad *= mask
        small.step()
        large.step()
        adapter.after_step(made, step)
    for item, weight in zip(entries, trained, strict=True):
        torch.testing.assert_close(item.weight, weight, rtol=0, atol=1e-9)
    assert sum(state["exp_avg"].numel() for state in small.state.values()) == 400
