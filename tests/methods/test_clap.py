"""CLAP: its multipliers from the training images, its penalty, and what is saved of it."""

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.clap import Clap
from tests.helpers.tiny_classifiers import IMAGES_BCHW, SCALE, Given, classifier
from tests.oracles.probe_oracle import clap_multipliers, clap_penalty

LABELS = [2, 0, 1, 1, 0, 2, 2]


def _moved(made):
    """Move the weights away from where they began; return what they were."""
    first_KD = made.head.weight.detach().clone()
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        made.head.weight += torch.randn(first_KD.shape, generator=draw, dtype=torch.float64)
    return first_KD


@pytest.mark.parametrize("views", [1, 3, 0])
def test_multipliers_are_zero_shot_clips_mean_probability_of_the_class(views):
    support, made = Given(LABELS), classifier()
    adapter = Clap(views=views)
    adapter(made)
    adapter.start(made, support)
    seen_VND = support.view_VND[:views] if views else support.centre_VND
    expected = clap_multipliers(seen_VND, LABELS, made.classes(), SCALE)
    assert made.head.multiplier_K.tolist() == pytest.approx(expected, abs=1e-12)
    assert support.asked == views
    assert len(set(expected)) == 3


def test_the_penalty_is_the_weighted_distance_from_the_prompts_and_has_its_gradient():
    support, made = Given(LABELS), classifier()
    adapter = Clap(views=2)
    adapter(made)
    adapter.start(made, support)
    assert adapter.penalty(made).item() == 0
    first_KD = _moved(made)
    multipliers = clap_multipliers(support.view_VND[:2], LABELS, made.classes(), SCALE)
    penalty = adapter.penalty(made)
    expected = clap_penalty(made.head.weight.detach(), first_KD, multipliers)
    assert penalty.item() == pytest.approx(expected, rel=1e-10)
    penalty.backward()
    weights_K1 = torch.tensor(multipliers, dtype=torch.float64)[:, None]
    gradient_KD = 2 / 3 * weights_K1 * (made.head.weight.detach() - first_KD)
    torch.testing.assert_close(made.head.weight.grad, gradient_KD, rtol=1e-9, atol=1e-12)


def test_it_begins_at_zero_shot_clip_and_trains_its_weights_alone():
    made, plain = classifier(), classifier()
    opened = Clap()(made)
    assert list(opened) == ["head.weight"]
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES_BCHW), plain(IMAGES_BCHW), rtol=0, atol=1e-10)
    assert [name for name, value in made.named_parameters() if value.requires_grad] == [
        "head.weight"
    ]


def test_what_training_alone_needs_is_not_saved():
    made = classifier()
    Clap()(made)
    assert [name for name in made.state_dict() if name.startswith("head")] == ["head.weight"]


def test_bad_views_are_refused():
    with pytest.raises(InputError, match=r"adapter\.views=-1: must be 0 or more"):
        Clap(views=-1)


def test_the_method_is_the_papers():
    settings = from_config(compose(["method=clap", "shots=1", "dataset=imagenet"]))
    assert settings.method.adapter.record() == {"name": "clap", "views": 20}
    optimizer = settings.method.optimizer.options
    assert (optimizer["lr"], optimizer["momentum"]) == (0.1, 0.9)
    schedule = settings.schedule
    assert (schedule.max_steps, schedule.batch_size) == (300 * 3, 256)  # whole batches of 1000
    assert (schedule.drop_last, schedule.crops) == (True, 20)
    few = from_config(compose(["method=clap", "shots=1", "dataset=eurosat"])).schedule
    assert few.max_steps == 300  # one step each, of 200 crops of 10 images
    assert Clap().class_bound
