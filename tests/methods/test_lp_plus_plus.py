"""LP++: where it begins, its formula, and its training against the released code's steps."""

import pytest
import torch
import torch.nn.functional as F

from so_clip.clip.classifier import Classifier
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.lp_plus_plus import LPPlusPlus, blended_head
from tests.helpers.tiny_classifiers import IMAGES_BCHW, Given, classifier, features
from tests.oracles.probe_oracle import (
    lp_plus_plus_logits,
    lp_plus_plus_start,
    lp_plus_plus_training,
)

LABELS = [0, 1, 1, 0, 2, 2]


def adapted(support: Given, seed: int = 0) -> tuple[Classifier, LPPlusPlus, dict]:
    made, adapter = classifier(), LPPlusPlus(seed)
    opened = adapter(made)
    adapter.start(made, support)
    return made, adapter, opened


def weights(made: Classifier) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return w_KD, b_K and alpha_K, undivided."""
    head = blended_head(made)
    return tuple(
        value.detach().clone()
        for value in (head.root_rate * head.weight, head.root_rate * head.bias, head.alpha)
    )


def test_it_begins_with_the_released_codes_values_and_rates():
    support = Given(LABELS)
    made, _, opened = adapted(support)
    assert {name: tuple(value.shape) for name, value in opened.items()} == {
        "head.weight": (3, 32),
        "head.bias": (3,),
        "head.descent": (3,),
    }
    text_KD = made.classes()
    w_KD, alpha, rate, alpha_rate = lp_plus_plus_start(support.view_VND[0], LABELS, text_KD)
    head = blended_head(made)
    assert float(head.root_rate) ** 2 == pytest.approx(rate, rel=1e-9)
    assert float(head.alpha_rate) == pytest.approx(alpha_rate, rel=1e-9)
    first_KD, bias_K, alpha_K = weights(made)
    torch.testing.assert_close(first_KD, w_KD, rtol=1e-9, atol=1e-9)
    assert alpha_K.tolist() == pytest.approx([alpha] * 3, rel=1e-9)
    assert bias_K.abs().min() > 0
    assert bias_K.abs().max() <= 32**-0.5
    with torch.no_grad():
        logits_BK = made.logits(features())
    for f_D, found_K in zip(features(), logits_BK, strict=True):
        expected_K = lp_plus_plus_logits(f_D, w_KD, bias_K, alpha_K, text_KD)
        torch.testing.assert_close(found_K, expected_K, rtol=1e-9, atol=1e-9)


def test_the_seed_draws_the_bias_and_no_global_state():
    state = torch.get_rng_state()
    first, again, other = (weights(adapted(Given(LABELS), seed)[0])[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_before_it_sees_the_images_it_is_zero_shot_clip():
    made, plain = classifier(), classifier()
    LPPlusPlus()(made)
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES_BCHW), plain(IMAGES_BCHW), rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [9, 10, 35])
def test_descent_at_rate_one_trains_as_the_released_code(steps):
    """Steps on all images at once: w and b have momentum, alpha moves along a sum of gradients."""
    support = Given(LABELS)
    made, adapter, opened = adapted(support)
    image_ND, text_KD = support.view_VND[0], made.classes()
    first_KD, bias_K, first_K = weights(made)
    expected = lp_plus_plus_training(image_ND, LABELS, text_KD, bias_K, steps)
    optimizer = torch.optim.SGD(opened.values(), lr=1.0, momentum=0.9)
    for step in range(1, steps + 1):
        F.cross_entropy(made.logits(image_ND), torch.tensor(LABELS)).backward()
        optimizer.step()
        optimizer.zero_grad()
        for parameter in adapter.after_step(made, step):
            optimizer.state.pop(parameter)
    for found, wanted in zip(weights(made), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert (weights(made)[0] - first_KD).abs().max() > 1e-4
    assert torch.equal(weights(made)[2], first_K) == (steps < 10)


def test_bad_options_are_errors():
    with pytest.raises(InputError, match=r"adapter\.seed=-1: must be 0 or more"):
        LPPlusPlus(seed=-1)


def test_the_method_is_the_papers():
    settings = from_config(compose(["method=lp_plus_plus", "seed=3"]))
    options, schedule = settings.method.optimizer.options, settings.schedule
    assert (options["lr"], options["momentum"], options["weight_decay"]) == (1, 0.9, 0)
    assert (schedule.max_steps, schedule.stop_loss) == (300, 0)
    assert schedule.lr_min == options["lr"], "the rate must stay constant"
    assert settings.method.adapter.options == {"seed": 3}
    assert LPPlusPlus().class_bound
