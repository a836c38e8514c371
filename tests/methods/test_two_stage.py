"""2SFS: what each stage trains, the change between them, and what comes of it on other classes."""

import re

import pytest
import torch
import torch.nn.functional as F

from so_clip.clip.classifier import Classifier
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.construct import make_adapter
from so_clip.methods.two_stage import TwoStage
from tests.helpers.small_models import weightless_backbone
from tests.helpers.tiny_classifiers import IMAGES_BCHW, PROMPTS, SCALE, Given, classifier
from tests.oracles.probe_oracle import cosine_logits

NORMS = ["norm"]
LABELS_B = torch.tensor([0, 1, 2, 0])


def adapted(steps=10, **options):
    made = classifier()
    adapter = TwoStage(NORMS, steps, **options)
    opened = adapter(made)
    adapter.start(made, Given([0, 1, 2]))
    return made, adapter, opened


def train(made, adapter, opened, first, last):
    """Take AdamW's steps `first` to `last`; return what it was told to forget after each."""
    optimizer = torch.optim.AdamW(opened.values(), lr=1e-2, weight_decay=0.1)
    forgotten = []
    for step in range(first, last + 1):
        F.cross_entropy(made(IMAGES_BCHW), LABELS_B).backward()
        optimizer.step()
        optimizer.zero_grad()
        forgotten.append(list(adapter.after_step(made, step)))
    return forgotten


def values(made):
    return {name: value.detach().clone() for name, value in made.named().items()}


def changed(before, made):
    return {name for name, value in made.named().items() if not torch.equal(value, before[name])}


def test_it_begins_exactly_as_zero_shot_clip_with_all_parameters_at_hand():
    made, _, opened = adapted()
    plain = classifier()
    with torch.no_grad():
        assert torch.equal(made(IMAGES_BCHW), plain(IMAGES_BCHW))
    assert opened.pop("head.weight").requires_grad is False
    assert all("ln_" in name and value.requires_grad for name, value in opened.items())
    assert {name.startswith("visual.") for name in opened} == {True, False}


def test_the_stages_train_what_they_should_and_change_at_their_time():
    made, adapter, opened = adapted(steps=5)
    assert adapter.switch == 3
    before = values(made)
    forgotten = train(made, adapter, opened, 1, 2)
    assert forgotten == [[], []]
    norms = set(opened) - {"head.weight"}
    assert changed(before, made) <= norms
    (forgotten,) = train(made, adapter, opened, 3, 3)
    assert {id(value) for value in forgotten} == {id(opened[name]) for name in norms}
    with torch.no_grad():
        tuned_KD = F.normalize(
            made.backbone.model.encode_text(made.backbone.tokenize(list(PROMPTS))), dim=-1
        )
    torch.testing.assert_close(made.head.weight.detach(), tuned_KD, rtol=0, atol=1e-9)
    assert not torch.allclose(tuned_KD, before["head.weight"], rtol=0, atol=1e-4)
    middle = values(made)
    train(made, adapter, opened, 4, 5)
    assert changed(middle, made) == {"head.weight"}


def test_the_second_stages_logits_are_cosines_with_the_weights_and_run_no_prompts():
    made, adapter, opened = adapted(steps=3)
    train(made, adapter, opened, 1, 3)
    with torch.no_grad():
        image_BD = made.backbone.encode_image(IMAGES_BCHW)
    made.backbone.model.ln_final.register_forward_hook(lambda *_: pytest.fail("prompts were run"))
    made.forget_classes()
    for f_D, found_K in zip(image_BD, made(IMAGES_BCHW), strict=True):
        expected = cosine_logits(f_D, made.head.weight.detach(), SCALE)
        assert found_K.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_change_does_not_move_the_logits():
    made, adapter, opened = adapted(steps=4)
    train(made, adapter, opened, 1, adapter.switch - 1)
    with torch.no_grad():
        before = made(IMAGES_BCHW)
        adapter.after_step(made, adapter.switch)
        torch.testing.assert_close(made(IMAGES_BCHW), before, rtol=0, atol=1e-9)


def test_other_classes_are_the_tuned_text_towers():
    made, adapter, opened = adapted(steps=3)
    train(made, adapter, opened, 1, 3)
    adapter.finish(made)
    others = ["a house", "a photo of a tree."]
    made.head = made.head.for_other_classes()
    made.use_prompts(made.backbone.tokenize(others))
    with torch.no_grad():
        text_KD = made.backbone.model.encode_text(made.backbone.tokenize(others))
        image_BD = made.backbone.encode_image(IMAGES_BCHW)
        for f_D, found_K in zip(image_BD, made(IMAGES_BCHW), strict=True):
            assert found_K.tolist() == pytest.approx(cosine_logits(f_D, text_KD, SCALE), abs=1e-9)
    assert not adapter.class_bound


@pytest.mark.parametrize("last", [1, 5])
def test_what_it_became_is_loaded_whenever_training_ended(last):
    made, adapter, opened = adapted(steps=4)
    train(made, adapter, opened, 1, last)
    adapter.finish(made)
    with torch.no_grad():
        expected = made(IMAGES_BCHW)
    other, its_adapter, _ = adapted(steps=4)
    other.load_state_dict(made.state_dict())
    its_adapter.resume(other)
    other.forget_classes()
    with torch.no_grad():
        assert torch.equal(other(IMAGES_BCHW), expected)
    assert [name for name, value in other.named().items() if value.requires_grad] == ["head.weight"]


@pytest.mark.parametrize(
    ("steps", "share", "switch"), [(1200, 0.6, 720), (1, 0.6, 1), (7, 0.5, 3), (10, 0.99, 9)]
)
def test_the_first_stage_is_its_share_of_the_steps(steps, share, switch):
    assert TwoStage(NORMS, steps, share).switch == switch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_stage": 0}, "adapter.first_stage=0: must lie between 0 and 1"),
        ({"first_stage": 1}, "adapter.first_stage=1: must lie between 0 and 1"),
        ({"first_stage": "x"}, "adapter.first_stage=x: must be a finite number"),
        ({"steps": -1}, "adapter.steps=-1: must be 0 or more"),
        ({"roles": []}, "adapter.roles=[]: must be a list"),
        ({"encoder": "image"}, "adapter.encoder=image"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(InputError) as caught:
        TwoStage(**{"roles": NORMS, "steps": 10} | options)
    assert message in str(caught.value)


def test_the_released_first_stage_trains_the_96_tensors_of_the_blocks():
    """The released code freezes ln_pre, ln_post and ln_final again before it trains."""
    settings = from_config(compose(["method=two_stage"]))
    backbone = weightless_backbone()
    made = Classifier(backbone, backbone.tokenize(list(PROMPTS)))
    released = make_adapter(settings.method.adapter).select(made)
    assert len(released) == 96
    assert all(re.search(r"resblocks\.\d+\.ln_[12]\.(weight|bias)$", name) for name in released)
    everything = TwoStage(NORMS, 10).select(made)
    assert len(everything) == 102
    outside = {name.rpartition(".")[0] for name in everything.keys() - released.keys()}
    assert outside == {"visual.ln_pre", "visual.ln_post", "ln_final"}


def test_each_stage_has_a_cosine_of_its_own():
    assert TwoStage(NORMS, 10).rate_restarts() == (6,)


def test_the_method_is_the_papers():
    settings = from_config(compose(["method=two_stage", "shots=4"]))
    assert settings.schedule.max_steps == settings.method.adapter.options["steps"] == 1200
    assert settings.schedule.stop_loss == 0
    assert settings.method.adapter.options["first_stage"] == 0.6
    options = settings.method.optimizer.options
    assert (options["lr"], options["weight_decay"]) == (2e-4, 1e-2)
    assert settings.method.optimizer.target == "torch.optim.AdamW"
