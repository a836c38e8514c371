"""Tip-Adapter: its formula and its cache, held against the paper's equations in float64."""

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.tip_adapter import CacheHead, TipAdapter
from tests.helpers.tiny_classifiers import SCALE, Given, classifier, features
from tests.oracles.probe_oracle import tip_keys, tip_logits

LABELS = [0, 0, 1, 1, 2, 2]


def adapted(support: Given, **options):
    made = classifier()
    adapter = TipAdapter(shots=2, **options)
    opened = adapter(made)
    adapter.start(made, support)
    return made, opened


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (2.5, 1.0), (0.0, 3.0), (1.0, 0.0)])
def test_logits_are_the_papers(alpha, beta):
    support = Given(LABELS)
    made, _ = adapted(support, alpha=alpha, beta=beta, views=3)
    text_KD, keys_ND = made.classes(), tip_keys(support.view_VND[:3])
    image_BD = features()
    with torch.no_grad():
        logits_BK = made.logits(image_BD)
    for f_D, found_K in zip(image_BD, logits_BK, strict=True):
        expected = tip_logits(f_D, text_KD, keys_ND, LABELS, SCALE, alpha, beta)
        assert found_K.tolist() == pytest.approx(expected, abs=1e-10)


def test_keys_are_unit_length_means_of_views_in_the_images_order():
    support = Given([2, 0, 1, 1, 0, 2])
    made, _ = adapted(support, views=4)
    assert support.asked == 4
    torch.testing.assert_close(
        made.head.keys, tip_keys(support.view_VND[:4]), rtol=0, atol=1e-12, check_dtype=True
    )
    assert made.head.values.argmax(1).tolist() == support.labels
    assert torch.equal(made.head.values.sum(1), torch.ones(6, dtype=torch.float64))


def test_without_views_a_key_is_the_test_crop():
    support = Given(LABELS)
    made, _ = adapted(support, views=0)
    torch.testing.assert_close(made.head.keys.detach(), support.centre_VND[0])
    assert support.asked == 0


def test_keys_are_there_at_once_and_say_nothing_before_the_images_are_seen():
    made, plain = classifier(), classifier()
    opened = TipAdapter(shots=4, train=True)(made)
    assert {name: tuple(value.shape) for name, value in opened.items()} == {"head.keys": (12, 32)}
    assert opened["head.keys"] is made.named()["head.keys"]
    image_BD = features()
    with torch.no_grad():
        assert torch.equal(made.logits(image_BD), plain.logits(image_BD))


@pytest.mark.parametrize("train", [False, True])
def test_keys_are_trained_if_asked_and_nothing_else_ever(train):
    made, opened = adapted(Given(LABELS), train=train)
    assert list(opened) == (["head.keys"] if train else [])
    open_names = {name for name, value in made.named_parameters() if value.requires_grad}
    assert open_names == set(opened)
    if train:
        loss = torch.nn.functional.cross_entropy(
            made.logits(features()), torch.tensor([0, 1] + [2] * 3)
        )
        loss.backward()
        assert made.head.keys.grad.abs().max() > 0


def test_more_images_than_shots_are_refused():
    made = classifier()
    adapter = TipAdapter(shots=1)
    adapter(made)
    with pytest.raises(
        InputError, match=r"adapter.shots=1: 6 training images of 3 classes are more"
    ):
        adapter.start(made, Given(LABELS))


def test_with_fewer_images_than_shots_the_empty_keys_have_no_effect():
    support, made = Given([0, 1, 1, 2]), classifier()
    adapter = TipAdapter(shots=2, views=3, train=True)
    opened = adapter(made)
    adapter.start(made, support)
    keys_ND, image_BD = tip_keys(support.view_VND[:3]), features()
    logits_BK = made.logits(image_BD)
    for f_D, found_K in zip(image_BD, logits_BK.detach(), strict=True):
        expected = tip_logits(f_D, made.classes(), keys_ND, support.labels, SCALE, 1.0, 5.5)
        assert found_K.tolist() == pytest.approx(expected, abs=1e-10)
    logits_BK.logsumexp(-1).sum().backward()
    torch.optim.AdamW(opened.values(), lr=0.1).step()
    assert len(made.head.keys) == 6
    assert not made.head.keys[4:].any()


# The configurations of github gaopengcuhk/Tip-Adapter: alpha of each dataset; beta is always 1.
RELEASED = {
    "caltech101": 3,
    "dtd": 2,
    "eurosat": 2,
    "fgvc": 5,
    "food101": 1.17,
    "imagenet": 1.17,
    "oxford_flowers": 10,
    "oxford_pets": 1.17,
    "stanford_cars": 3,
    "sun397": 1.17,
    "ucf101": 3,
}


def test_released_constants_are_those_of_the_authors_configurations():
    config = compose(["method=tip_adapter_f", "adapter.constants=released"])
    for dataset, alpha in RELEASED.items():
        config.dataset.name = dataset
        assert (config.adapter.alpha, config.adapter.beta) == (alpha, 1)
    config.adapter.constants = "paper"
    assert (config.adapter.alpha, config.adapter.beta) == (1, 5.5)


def test_a_dataset_without_released_constants_is_refused():
    overrides = ["method=tip_adapter", "dataset=digits", "adapter.constants=released"]
    options = from_config(compose(overrides)).method.adapter.options
    with pytest.raises(InputError, match=r"released no alpha for this dataset. Set adapter.alpha="):
        TipAdapter(**options)
    options = from_config(compose([*overrides, "adapter.alpha=2"])).method.adapter.options
    assert (TipAdapter(**options).alpha, TipAdapter(**options).beta) == (2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "adapter.shots=0: must be 1 or more"),
        ({"shots": 1.5}, "adapter.shots=1.5: must be a whole number"),
        ({"views": -1}, "adapter.views=-1: must be 0 or more"),
        ({"alpha": -1}, "adapter.alpha=-1: must be 0 or above"),
        ({"beta": -0.5}, "adapter.beta=-0.5: must be 0 or above"),
        ({"beta": "x"}, "adapter.beta=x: must be a finite number"),
        ({"train": 1}, "adapter.train=1: must be true or false"),
        ({"alpha": None}, "adapter.alpha=None: must be a finite number"),
        ({"constants": "searched"}, "adapter.constants=searched: must be paper or released"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(InputError) as caught:
        TipAdapter(**{"shots": 2} | options)
    assert message in str(caught.value)


def test_the_methods_are_the_papers():
    settings = from_config(compose(["method=tip_adapter", "shots=16"]))
    assert settings.adapts
    assert not settings.trains
    options = {"shots": 16, "alpha": 1, "beta": 5.5, "views": 10, "train": False}
    options["constants"] = "paper"
    assert settings.method.adapter.record() == {"name": "tip_adapter", **options}
    settings = from_config(compose(["method=tip_adapter_f", "shots=16", "dataset=imagenet"]))
    assert settings.method.adapter.options["train"] is True
    optimizer = settings.method.optimizer.options
    assert (optimizer["lr"], optimizer["eps"]) == (1e-3, 1e-4)
    schedule = settings.schedule
    assert (schedule.batch_size, schedule.stop_loss, schedule.lr_min) == (256, 0, 0)
    assert schedule.max_steps == 20 * 63  # 16,000 images in batches of 256, the last one smaller
    schedule = from_config(compose(["method=tip_adapter_f", "dataset=eurosat"])).schedule
    assert schedule.max_steps == 100  # the authors' epochs for EuroSAT; 40 images are one batch


def test_it_is_bound_to_its_classes():
    assert TipAdapter(shots=1).class_bound


def test_the_head_works_in_float32_under_autocast():
    head = CacheHead(SCALE, features(6).float(), 3, 1.0, 5.5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits_BK = head(features().float(), lambda: features(3).float())
    with torch.no_grad():
        expected = head(features().float(), lambda: features(3).float())
    assert logits_BK.dtype == torch.float32
    assert torch.equal(logits_BK, expected)
