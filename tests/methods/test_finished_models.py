"""Finished models as tensors: plain weights of CLIP after a merge, and low-rank updates."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.methods.adapter import Adapter
from so_clip.methods.model import Model
from tests.helpers.battery_parts import (
    TrainedMethod,
    logits_of,
    model_of,
    resumed,
    settings_of,
    state_of,
    trained,
)
from tests.helpers.battery_rows import ROWS, cases

HALF = "adapter.interpolation=0.5"
SPLIT = "adapter.split_qkv=true"
RESTARTS = ("adapter.every=2", "adapter.restart_warmup=1")
# Method and options of each form of a low-rank update.
LOW_RANK = {
    "clip_lora": ("clip_lora",),
    "clip_lora, half kept": ("clip_lora", HALF),
    "clip_lora, one encoder": ("clip_lora", "adapter.encoder=text"),
    "lora": ("lora",),
    "lora, rank-stabilised": ("lora", "adapter.rank_stabilised=true", SPLIT),
    "relora": ("relora", SPLIT, *RESTARTS),
    "adalora": ("adalora",),
    "adalora, split": ("adalora", SPLIT),
}
MERGED = {
    "lora": (HALF,),
    "ia3": (HALF,),
    "relora": (HALF, *RESTARTS),
    "adalora": (HALF,),
    "dora": (HALF,),
}

DRAWN = ("vera", "randlora", "shira", "fourierft")
# The cases that are not marked slow.
FAST_MERGED = ("so", "clip_lora", "lora", "adalora", "cocoop")
FAST_LOW_RANK = ("clip_lora, half kept", "lora, rank-stabilised", "relora", "adalora, split")


def adapter_of(done: Any) -> Adapter:
    adapter = done.adapter
    assert isinstance(adapter, Adapter)
    return adapter


@cache
def plain_model() -> Model:
    return model_of(from_config(compose(["method=zero_shot"])))


def plain_logits(weights: dict[str, Tensor]) -> Tensor:
    """Return the logits of a plain CLIP with these weights."""
    plain = plain_model()
    plain.classifier.backbone.model.load_state_dict(weights)
    plain.classifier.forget_classes()
    return logits_of(plain)


def base_weights(done: TrainedMethod) -> dict[str, Tensor]:
    """Return the weights of CLIP before the training, by open_clip's names."""
    names = plain_model().classifier.backbone.model.state_dict()
    return {name: done.before[f"backbone.model.{name}"] for name in names}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", cases(ROWS, FAST_MERGED))
def test_a_merged_model_is_a_plain_clip_with_the_same_logits(method: str) -> None:
    done = trained(method, steps=3)
    model = resumed(done.settings, state_of(done.model))
    adapter = adapter_of(model)
    adapter.merge(model.classifier)
    torch.testing.assert_close(logits_of(model), done.logits_BK, rtol=1e-5, atol=2e-4)
    assert adapter.low_rank_updates(model.classifier) == []
    assert adapter.plain == ROWS[method].plain
    if adapter.plain:
        weights = model.classifier.backbone.model.state_dict()
        assert weights.keys() == base_weights(done).keys()
        logits_BK = plain_logits(weights)
        torch.testing.assert_close(logits_BK, done.logits_BK, rtol=1e-5, atol=2e-4)
        assert not torch.allclose(logits_BK, done.zero_shot_BK, rtol=0, atol=1e-2)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", cases(MERGED, ("lora", "relora")))
def test_a_model_with_half_of_the_update_is_a_plain_clip(method: str) -> None:
    done = trained(method, *MERGED[method], steps=3)
    model = resumed(done.settings, state_of(done.model))
    assert torch.equal(logits_of(model), done.logits_BK)
    assert adapter_of(model).low_rank_updates(model.classifier) == []
    adapter_of(model).merge(model.classifier)
    assert torch.equal(logits_of(model), done.logits_BK)
    assert torch.equal(plain_logits(model.classifier.backbone.model.state_dict()), done.logits_BK)


@pytest.mark.parametrize("method", ["so", "clip_lora", "relora"])
def test_rewritten_tensors_are_all_that_changes_beside_opened_ones(method: str) -> None:
    assert_rewritten(trained(method, *(RESTARTS if method == "relora" else ()), steps=3))


@pytest.mark.parametrize("method", cases(MERGED, ("lora", "relora")))
def test_rewritten_tensors_are_those_that_receive_half_of_the_update(method: str) -> None:
    assert_rewritten(trained(method, *MERGED[method], steps=3))


def assert_rewritten(done: TrainedMethod) -> None:
    model = model_of(done.settings)
    adapter = adapter_of(model)
    rewritten = adapter.rewritten(model.classifier)
    base, after = base_weights(done), done.model.classifier.backbone.model.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in rewritten.items())
    opened = {name.replace("in_proj.", "in_proj_") for name in model.parameters}
    changed = {name for name, value in base.items() if not torch.equal(value, after[name])}
    assert changed - opened <= rewritten.keys()
    # The biases of the small model are zero, so IA3 does not change them.
    assert all(name in changed or name.endswith("bias") for name in rewritten)


def with_updates(done: TrainedMethod) -> dict[str, Tensor]:
    """Return CLIP's weights plus the low-rank updates, entry by entry, in float64."""
    classifier, adapter = done.model.classifier, adapter_of(done.model)
    state, weights = classifier.state_dict(), base_weights(done)
    for name in adapter.rewritten(classifier):
        weights[name] = state[f"backbone.model.{name}"]
    weights = {name: value.clone() for name, value in weights.items()}
    updates = adapter.low_rank_updates(classifier)
    assert updates
    for update in updates:
        down_RI, up_OR = state[update.down].double(), state[update.up].double()
        ranks = len(down_RI)
        diagonal_R = torch.ones(ranks) if update.diagonal is None else state[update.diagonal]
        first, end = update.rows
        assert (end - first, ranks) == up_OR.shape
        sum_OI = weights[update.tensor].double()
        for rank in range(ranks):
            factor = update.scale * diagonal_R.flatten()[rank].item()
            sum_OI[first:end] += factor * up_OR[:, rank, None] * down_RI[rank]
        weights[update.tensor] = sum_OI
    return weights


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("case", cases(LOW_RANK, FAST_LOW_RANK))
def test_low_rank_updates_added_to_clip_give_the_adapted_logits(case: str) -> None:
    method, *options = LOW_RANK[case]
    done = trained(method, *options, steps=3)
    weights = with_updates(done)
    torch.testing.assert_close(plain_logits(weights), done.logits_BK, rtol=1e-5, atol=2e-4)
    assert not torch.allclose(done.logits_BK, done.zero_shot_BK, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", ["so", "dora", "vera"])
def test_other_methods_have_no_low_rank_updates(method: str) -> None:
    model = model_of(settings_of(method))
    assert adapter_of(model).low_rank_updates(model.classifier) == []


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", cases(DRAWN, ("vera", "shira")))
def test_no_random_choice_is_drawn_again_for_a_finished_model(method: str) -> None:
    done = trained(method, steps=3)
    again = resumed(settings_of(method, 3, "seed=2"), state_of(done.model))
    assert torch.equal(logits_of(again), done.logits_BK)


@pytest.mark.parametrize("method", cases(ROWS, ("vera", "relora")))
def test_no_tensor_is_saved_twice(method: str) -> None:
    state = model_of(settings_of(method)).classifier.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_clip_lora_in_half_precision_is_rebuilt_exactly() -> None:
    settings = settings_of("clip_lora", 3, "precision=fp16_authors")
    model = model_of(settings)
    with torch.no_grad():
        for value in model.parameters.values():
            value.add_(0.1)
    again = resumed(settings, state_of(model))
    with model.precision.autocast():
        assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", ["shira", "fourierft"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda places_E: places_E[:-1], "must be"),
        (lambda places_E: places_E.float(), "must be"),
        (lambda places_E: places_E - 1 - places_E.max(), "outside"),
        (lambda places_E: places_E + 2**20, "outside"),
    ],
)
def test_a_damaged_choice_of_entries_is_refused(method: str, damage: Any, message: str) -> None:
    settings = settings_of(method)
    state = state_of(model_of(settings))
    name = next(name for name in state if name.endswith("indices.default"))
    with pytest.raises(RuntimeError, match=message):
        resumed(settings, state | {name: damage(state[name])})
    del state[name]
    with pytest.raises(RuntimeError, match="Missing key"):
        resumed(settings, state)
