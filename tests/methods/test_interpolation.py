"""WiSE-FT: weights that end between zero-shot and trained, as matrices and as low-rank updates."""

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.clip_lora import ClipLoRA
from so_clip.methods.weights import Weights
from tests.helpers.tiny_classifiers import IMAGES_BCHW, Given, classifier

ROLES = ["mlp_in", "norm"]


def _move(opened):
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in opened.values():
            value += 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    return {name: value.detach().clone() for name, value in opened.items()}


def _logits(made):
    made.forget_classes()
    with torch.no_grad():
        return made(IMAGES_BCHW)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_weights_end_as_the_papers_mean_of_both(share):
    made = classifier()
    adapter = Weights(ROLES, interpolation=share)
    opened = adapter(made)
    before = {name: value.detach().clone() for name, value in made.named().items()}
    adapter.start(made, Given([0, 1, 2]))
    trained = _move(opened)
    adapter.finish(made)
    for name, value in made.named().items():
        expected = before[name]
        if name in opened:
            assert value is opened[name], "the optimizer's own tensors were replaced"
            expected = (1 - share) * before[name] + share * trained[name]
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-14)
    if share in (0, 1):
        ends = before if share == 0 else trained
        assert all(torch.equal(opened[name], ends[name]) for name in opened)


def test_what_was_kept_is_in_no_state_and_gone_in_the_end():
    made = classifier()
    names = set(made.state_dict())
    adapter = Weights(ROLES, interpolation=0.5)
    adapter(made)
    parameters = {name for name, _ in made.named_parameters()}
    adapter.start(made, Given([0, 1, 2]))
    assert set(made.state_dict()) == names
    assert {name for name, _ in made.named_parameters()} == parameters
    adapter.finish(made)
    assert not hasattr(made, "before")
    again = classifier()
    its_adapter = Weights(ROLES, interpolation=0.5)
    its_adapter(again)
    again.load_state_dict(made.state_dict())
    its_adapter.resume(again)
    assert torch.equal(_logits(again), _logits(made))


def test_nothing_is_kept_where_everything_trained_is():
    made = classifier()
    adapter = Weights(ROLES)
    adapter(made)
    adapter.start(made, Given([0, 1, 2]))
    assert not hasattr(made, "before")
    adapter.finish(made)
    adapter.resume(made)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_a_low_rank_update_is_kept_in_part(share):
    made, halved = classifier(), classifier()
    adapter = ClipLoRA(dropout=0, interpolation=share)
    opened = adapter(made)
    for name, value in _move(opened).items():
        opened[name].data = value.double()
    # The same update, scaled where it is largest: B.
    other = ClipLoRA(dropout=0)(halved)
    for name, value in opened.items():
        factor = share if name.endswith(".up") else 1
        other[name].data = factor * value.detach()
    adapter.finish(made)
    torch.testing.assert_close(_logits(made), _logits(halved), rtol=0, atol=1e-9)
    state = made.state_dict()
    again = classifier()
    its_adapter = ClipLoRA(dropout=0, interpolation=share)
    for value in its_adapter(again).values():
        value.data = value.double()
    again.load_state_dict(state)
    its_adapter.resume(again)
    assert torch.equal(_logits(again), _logits(made))


@pytest.mark.parametrize("value", [-0.1, 1.5, "x", True, float("nan")])
def test_a_share_that_is_none_is_refused(value):
    for make in (
        lambda: Weights(ROLES, interpolation=value),
        lambda: ClipLoRA(interpolation=value),
    ):
        with pytest.raises(InputError, match=f"adapter.interpolation={value}: must"):
            make()


def test_the_method_keeps_half_of_what_dense_adamw_did():
    settings = from_config(compose(["method=wise_ft"]))
    plain = from_config(compose(["method=adamw"]))
    adapter = plain.method.adapter.record()
    assert adapter["interpolation"] == 1
    assert settings.method.adapter.record() == adapter | {"interpolation": 0.5}
    assert settings.method.optimizer.name == "clipped_adamw"
    assert from_config(compose(["method=clip_lora"])).method.adapter.options["interpolation"] == 1
