"""Linear probes and LP++: where they begin, their formulas, and the rates that LP++ brings."""

import pytest
import torch
import torch.nn.functional as F

from so_clip.adapt.linear_probe import LinearHead, LinearProbe, LPPlusPlus, text_lengths
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from tests.helpers.tiny_classifiers import IMAGES_BCHW, PROMPTS, SCALE, Given, classifier, features
from tests.oracles.probe_oracle import cosine_logits, lp_plus_plus_logits, lp_plus_plus_start

LABELS = [0, 1, 1, 0, 2, 2]
B_LABELS = torch.tensor([0, 1, 2, 2, 0])


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


def test_lp_plus_plus_begins_with_the_released_codes_values_and_rates():
    support, made = Given(LABELS), classifier()
    adapter = LPPlusPlus(alpha_rate=0.3)
    opened = adapter(made)
    assert {name: tuple(value.shape) for name, value in opened.items()} == {
        "head.weight": (3, 32),
        "head.alpha": (3,),
    }
    adapter.start(made, support)
    text_KD, image_ND = made.classes(), support.view_VND[0]
    w_KD, alpha, w_rate, alpha_rate = lp_plus_plus_start(image_ND, LABELS, text_KD)
    head = made.head
    roots = head.root_rates
    assert roots.square().tolist() == pytest.approx([w_rate, 0.3 * alpha_rate], rel=1e-9)
    torch.testing.assert_close(head.weight.detach() * roots[0], w_KD, rtol=1e-9, atol=1e-9)
    assert (head.alpha.detach() * roots[1]).tolist() == pytest.approx([alpha] * 3, rel=1e-9)
    with torch.no_grad():
        logits_BK = made.logits(features())
    for f_D, found_K in zip(features(), logits_BK, strict=True):
        expected_K = lp_plus_plus_logits(
            f_D, w_KD, torch.full((3,), alpha, dtype=torch.float64), text_KD
        )
        torch.testing.assert_close(found_K, expected_K, rtol=1e-9, atol=1e-9)


def test_before_lp_plus_plus_sees_the_images_it_is_zero_shot_clip():
    made, plain = classifier(), classifier()
    LPPlusPlus()(made)
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES_BCHW), plain(IMAGES_BCHW), rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_at_rate_one_moves_w_and_alpha_at_their_own_rates(momentum):
    """Three steps of SGD against the same steps on w and alpha themselves."""
    support, made = Given(LABELS), classifier()
    adapter = LPPlusPlus(alpha_rate=0.5)
    opened = adapter(made)
    adapter.start(made, support)
    text_KD, image_BD = made.classes(), features()
    w_KD, alpha, w_rate, alpha_rate = lp_plus_plus_start(support.view_VND[0], LABELS, text_KD)
    plain = [w_KD.requires_grad_(), torch.full((3,), alpha, dtype=torch.float64).requires_grad_()]
    optimizer = torch.optim.SGD(opened.values(), lr=1.0, momentum=momentum)
    expected = torch.optim.SGD(
        [
            {"params": [plain[0]], "lr": w_rate},
            {"params": [plain[1]], "lr": 0.5 * alpha_rate},
        ],
        momentum=momentum,
    )
    for _ in range(3):
        F.cross_entropy(made.logits(image_BD), B_LABELS).backward()
        logits_BK = image_BD @ (plain[0] + plain[1][:, None] * text_KD).T
        F.cross_entropy(logits_BK, B_LABELS).backward()
        for item in (optimizer, expected):
            item.step()
            item.zero_grad()
    roots = made.head.root_rates
    found = (made.head.weight * roots[0], made.head.alpha * roots[1])
    for value, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(value.detach(), wanted.detach(), rtol=1e-8, atol=1e-10)
    assert (plain[1] - alpha).abs().max() > 1e-4, "nothing moved"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearProbe(normalize=1), "adapter.normalize=1: must be true or false"),
        (lambda: LPPlusPlus(alpha_rate=0), "adapter.alpha_rate=0: must be above 0"),
        (lambda: LPPlusPlus(alpha_rate="x"), "adapter.alpha_rate=x: must be a finite number"),
    ],
)
def test_bad_options_are_errors(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


def test_the_methods_are_their_papers():
    settings = from_config(compose(["method=linear_probe", "shots=16", "dataset=dtd"]))
    options = settings.method.optimizer.options
    assert settings.method.optimizer.target == "torch.optim.SGD"
    assert (options["lr"], options["momentum"], options["weight_decay"]) == (0.1, 0.9, 0)
    assert (settings.schedule.batch_size, settings.schedule.max_steps) == (256, 300 * 3)
    settings = from_config(compose(["method=lp_plus_plus"]))
    options, schedule = settings.method.optimizer.options, settings.schedule
    assert (options["lr"], options["momentum"], options["weight_decay"]) == (1, 0.9, 0)
    assert (schedule.max_steps, schedule.stop_loss) == (300, 0)
    assert schedule.lr_min == options["lr"], "the rate is to stay where it is"
    assert LinearProbe().class_bound
    assert LPPlusPlus().class_bound
