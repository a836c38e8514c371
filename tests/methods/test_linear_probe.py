"""Linear probes: where they begin, and their formulas."""

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.linear_probe import LinearHead, LinearProbe, text_lengths
from tests.helpers.tiny_classifiers import IMAGES_BCHW, PROMPTS, SCALE, classifier, features
from tests.oracles.probe_oracle import cosine_logits


@pytest.mark.parametrize("normalize", [True, False])
def test_a_probe_begins_exactly_as_zero_shot_clip(normalize):
    made, plain = classifier(), classifier()
    with torch.no_grad():
        expected = plain(IMAGES_BCHW)
    opened = LinearProbe(normalize)(made)
    assert list(opened) == ["head.weight"]
    assert opened["head.weight"] is made.named()["head.weight"]
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES_BCHW), expected, rtol=0, atol=1e-10)


def test_normalised_weights_begin_as_long_as_the_text_towers_output():
    made = classifier()
    opened = LinearProbe()(made)
    model = made.backbone.model
    with torch.no_grad():
        text_KD = torch.stack([model.encode_text(made.backbone.tokenize([p]))[0] for p in PROMPTS])
    torch.testing.assert_close(opened["head.weight"].detach(), text_KD, rtol=1e-9, atol=1e-9)
    free = LinearProbe(normalize=False)(classifier())
    torch.testing.assert_close(free["head.weight"].norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_of_several_prompts_the_mean_has_the_length():
    prompts = [*PROMPTS, "a dog"]
    made = classifier(2, prompts)
    model = made.backbone.model
    with torch.no_grad():
        text = [model.encode_text(made.backbone.tokenize([p]))[0] for p in prompts]
    expected = [float((text[k] + text[k + 1]).norm() / 2) for k in (0, 2)]
    assert text_lengths(made).tolist() == pytest.approx(expected, rel=1e-9)
    plain = classifier(2, prompts)
    LinearProbe()(made)
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES_BCHW), plain(IMAGES_BCHW), rtol=0, atol=1e-10)


def test_a_probes_logits_are_scaled_cosines_of_weights_of_any_length():
    draw = torch.Generator().manual_seed(2)
    weight_KD = 5 * torch.randn(3, 32, generator=draw, dtype=torch.float64)
    image_BD = features()
    head = LinearHead(SCALE, weight_KD)
    for f_D, found_K in zip(image_BD, head(image_BD, _none), strict=True):
        assert found_K.tolist() == pytest.approx(cosine_logits(f_D, weight_KD, SCALE), abs=1e-10)
    free = LinearHead(SCALE, weight_KD, normalize=False)
    for f_D, found_K in zip(image_BD, free(image_BD, _none), strict=True):
        expected = [SCALE * float(torch.dot(f_D, w_D)) for w_D in weight_KD]
        assert found_K.tolist() == pytest.approx(expected, abs=1e-10)


def _none():
    raise AssertionError("the prompts were asked for")


def test_a_probe_runs_no_tower_with_a_graph_and_no_prompts_at_all():
    made = classifier()
    LinearProbe()(made)
    made.backbone.model.ln_final.register_forward_hook(lambda *_: _none())
    made.forget_classes()
    logits_BK = made(IMAGES_BCHW)
    logits_BK.sum().backward()
    assert [name for name, value in made.named().items() if value.grad is not None] == [
        "head.weight"
    ]


def test_bad_options_are_errors():
    with pytest.raises(InputError, match=r"adapter\.normalize=1: must be true or false"):
        LinearProbe(normalize=1)


def test_the_method_is_the_papers():
    settings = from_config(compose(["method=linear_probe", "shots=16", "dataset=dtd"]))
    options, schedule = settings.method.optimizer.options, settings.schedule
    assert settings.method.optimizer.target == "torch.optim.SGD"
    assert (options["lr"], options["momentum"], options["weight_decay"]) == (0.1, 0.9, 0)
    assert (schedule.batch_size, schedule.max_steps) == (256, 300 * 2)  # whole batches of 752
    assert (schedule.drop_last, schedule.crops) == (True, 20)
    assert LinearProbe().class_bound
