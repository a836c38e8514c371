"""Sums, multiples and differences of adapters, against sums of state dicts in float64."""

import pytest
import torch

from so_clip import adapters
from so_clip.errors import InputError
from tests.helpers.battery_parts import trained
from tests.helpers.saved_adapters import bare_clip, save_trained
from tests.helpers.small_models import small_clip


def saved(method: str, tmp_path) -> adapters.SavedAdapter:
    return save_trained(trained(method), tmp_path / f"{method}.safetensors")


def adapted(adapter) -> dict[str, torch.Tensor]:
    model = bare_clip()
    adapters.apply(model, adapter)
    return {name: value.double() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("methods", "weights"),
    [
        (("so", "layer_norm"), (0.7, 0.3)),
        pytest.param(("so", "adamw", "so"), (1.0, -0.5, 2.0), marks=pytest.mark.slow),
        (("clip_lora", "so"), (0.5, 0.5)),
    ],
)
def test_a_merged_adapter_is_the_weighted_sum_of_changes(methods, weights, tmp_path):
    parts = [saved(method, tmp_path) for method in methods]
    base = {name: value.double() for name, value in bare_clip().state_dict().items()}
    merged = adapters.merge(parts, weights=weights)
    adapters.save(merged, tmp_path / "merged.safetensors")
    found = adapted(adapters.load(tmp_path / "merged.safetensors"))
    states = [adapted(part) for part in parts]
    for name, value in base.items():
        slow = sum(
            (weight * (state[name] - value) for weight, state in zip(weights, states, strict=True)),
            start=value,
        )
        torch.testing.assert_close(found[name], slow, rtol=1e-5, atol=1e-6)


def test_without_weights_the_sum_is_the_average(tmp_path):
    parts = [saved("so", tmp_path), saved("layer_norm", tmp_path)]
    plain, half = adapters.merge(parts), adapters.merge(parts, weights=[0.5, 0.5])
    one, other = adapted(plain), adapted(half)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["so", "clip_lora"])
def test_a_scale_of_zero_is_the_base_and_of_one_the_adapter(method, tmp_path):
    adapter = saved(method, tmp_path)
    base = {name: value.double() for name, value in bare_clip().state_dict().items()}
    zero, one = (adapted(adapters.scale(adapter, factor)) for factor in (0, 1))
    unscaled = adapted(adapter)
    for name, value in base.items():
        assert torch.equal(zero[name], value)
        torch.testing.assert_close(one[name], unscaled[name], rtol=1e-6, atol=1e-7)


def test_a_difference_turns_one_checkpoint_into_the_other_bit_for_bit(tmp_path):
    model, other = bare_clip(), bare_clip()
    adapters.apply(other, saved("so", tmp_path))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    torch.save(other.state_dict(), tmp_path / "adapted.pt")
    adapter = adapters.diff(tmp_path / "base.pt", tmp_path / "adapted.pt")
    assert {*adapter.changes} == {*saved("so", tmp_path).changes}
    adapters.apply(model, adapter)
    before, after = model.state_dict(), other.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert adapters.diff(model, model).changes == {}


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_difference_knows_the_activation_of_its_base(quick_gelu):
    model = small_clip(quick_gelu)
    assert adapters.diff(model, model).about.base.quick_gelu == quick_gelu


def test_what_has_no_sum_is_refused(tmp_path):
    so, probe = saved("so", tmp_path), saved("linear_probe", tmp_path)
    for call, words in [
        (lambda: adapters.merge([]), "there is no adapter"),
        (lambda: adapters.merge([so], weights=[1, 2]), "1 adapters and 2 weights"),
        (lambda: adapters.merge([so], weights=[float("nan")]), "weights"),
        (lambda: adapters.merge([so, probe]), "linear_probe adds head.weight"),
        (lambda: adapters.scale(probe, 2), "linear_probe adds head.weight"),
        (lambda: adapters.scale(so, float("inf")), "weights"),
        (lambda: adapters.diff(bare_clip(), {"a": torch.ones(1)}), "diff: only the"),
        (lambda: adapters.diff(bare_clip(), 3), "int holds no weights"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(InputError, match="Only adapters of one base have a sum"):
        adapters.merge([so, adapters.diff(*_two_other_models())])


def _two_other_models():
    return {"w": torch.zeros(3)}, {"w": torch.ones(3)}
