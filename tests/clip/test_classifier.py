"""Images in, logits out: the formula, and which towers run, with a graph or without."""

from collections import Counter

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.packed_text import TEXT_BUDGETS_MIB
from so_clip.clip.heads import CosineHead
from so_clip.clip.towers import tower_of
from so_clip.methods.weights import Weights
from tests.helpers.small_models import small_backbone

PROMPTS = ["a photo of a dog.", "a photo of a cat.", "a drawing"]
IMAGES_BCHW = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def classifier() -> Classifier:
    backbone = small_backbone()
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(PROMPTS))


def _runs(classifier: Classifier) -> Counter[str]:
    """Count, from now on, how often each tower runs."""
    counts = Counter[str]()
    model = classifier.backbone.model
    towers = (("vision", model.visual.ln_post), ("text", model.ln_final))
    for tower, last in towers:
        last.register_forward_hook(lambda *_, tower=tower: counts.update([tower]))
    return counts


def _open(classifier: Classifier, encoder: str) -> list[torch.nn.Parameter]:
    return list(Weights(["mlp_in"], encoder)(classifier).values())


def test_logits_are_scaled_cosines(classifier):
    backbone = classifier.backbone
    with torch.no_grad():
        logits_BK = classifier(IMAGES_BCHW)
        pixels_BCHW = (IMAGES_BCHW / 255 - backbone.mean) / backbone.std
        image_BD = backbone.model.encode_image(pixels_BCHW)
        class_KD = torch.cat(
            [backbone.model.encode_text(backbone.tokenize([prompt])) for prompt in PROMPTS]
        )
        for b in range(2):
            for k in range(3):
                cosine = torch.dot(image_BD[b], class_KD[k]) / (
                    image_BD[b].norm() * class_KD[k].norm()
                )
                assert logits_BK[b, k].item() == pytest.approx(100 * cosine.item(), abs=1e-3)


def test_every_parameter_is_frozen_and_prompts_are_no_parameters(classifier):
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    parameters = dict(classifier.named_parameters())
    assert all(name.startswith("backbone.") for name in parameters)


def test_a_frozen_text_tower_encodes_once(classifier):
    _open(classifier, "vision")
    runs = _runs(classifier)
    for _ in range(3):
        classifier(IMAGES_BCHW).sum().backward()
    with torch.no_grad():
        classifier(IMAGES_BCHW)
    assert runs == {"vision": 4, "text": 1}


def test_a_trained_text_tower_encodes_every_time_and_once_for_evaluation(classifier):
    _open(classifier, "text")
    runs = _runs(classifier)
    for _ in range(3):
        classifier(IMAGES_BCHW).sum().backward()
    assert runs["text"] == 3
    with torch.no_grad(), classifier.held_classes():
        for _ in range(3):
            classifier(IMAGES_BCHW)
    assert runs["text"] == 4


def test_evaluation_after_training_sees_the_trained_prompts(classifier):
    with torch.no_grad():
        before_BK = classifier(IMAGES_BCHW)
    opened = _open(classifier, "text")
    classifier(IMAGES_BCHW).sum().backward()
    with torch.no_grad():
        for parameter in opened:
            parameter.add_(0.1 * parameter.grad.sign())
        after_BK = classifier(IMAGES_BCHW)
    fresh = Classifier(classifier.backbone, classifier.backbone.tokenize(PROMPTS))
    with torch.no_grad():
        assert torch.equal(after_BK, fresh(IMAGES_BCHW))
    assert not torch.allclose(before_BK, after_BK, atol=1e-2)


def test_logits_are_float32_products_whatever_autocast_says(classifier):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        image_BD = classifier.backbone.encode_image(IMAGES_BCHW)
        logits_BK = classifier.logits(image_BD)
        assert torch.equal(classifier(IMAGES_BCHW), logits_BK)
    assert logits_BK.dtype == torch.float32
    fresh = Classifier(classifier.backbone, classifier.backbone.tokenize(PROMPTS))
    assert torch.equal(logits_BK, fresh.logits(image_BD))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_after_an_evaluation_finds_no_trace_of_it(classifier, dtype):
    _open(classifier, "vision")
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        classifier(IMAGES_BCHW)
    fresh = Classifier(classifier.backbone, classifier.backbone.tokenize(PROMPTS))
    opened = _open(fresh, "vision")
    gradients = [
        torch.autograd.grad(item(IMAGES_BCHW)[:, 0].sum(), opened) for item in (classifier, fresh)
    ]
    for after, before in zip(*gradients, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("encoder", ["vision", "text", "both"])
def test_gradients_reach_the_trained_towers_and_only_those(classifier, encoder):
    opened = _open(classifier, encoder)
    classifier(IMAGES_BCHW)[:, 0].sum().backward()
    for parameter in opened:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    named = classifier.backbone.model.named_parameters()
    towers = {tower_of(name) for name, parameter in named if parameter.grad is not None}
    assert towers == ({"vision", "text"} if encoder == "both" else {encoder})


def test_gradients_are_those_of_the_logits(classifier):
    _open(classifier, "both")
    model = classifier.backbone.model
    for weight in (
        model.visual.transformer.resblocks[0].mlp.c_fc.weight,
        model.transformer.resblocks[0].mlp.c_fc.weight,
    ):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad(classifier(IMAGES_BCHW)[0, 1], weight)
        values = []
        with torch.no_grad():
            for step in (1e-2, -1e-2):
                weight.add_(direction, alpha=step)
                with torch.enable_grad():  # forces the prompts to be encoded again
                    values.append(classifier(IMAGES_BCHW)[0, 1].item())
                weight.add_(direction, alpha=-step)
        slope = (values[0] - values[1]) / 2e-2
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.05, abs=0.05)


def test_what_is_frozen_runs_without_a_graph(classifier):
    assert not classifier(IMAGES_BCHW).requires_grad
    _open(classifier, "text")
    seen = []
    last = classifier.backbone.model.visual.ln_post
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    assert classifier(IMAGES_BCHW).requires_grad
    assert seen == [False]


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("visual.proj", "vision"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", "vision"),
        ("transformer.resblocks.0.mlp.c_fc.weight", "text"),
        ("text.transformer.resblocks.0.mlp.c_fc.weight", "text"),
        ("token_embedding.weight", "text"),
    ],
)
def test_a_parameters_tower_follows_from_its_name(name, tower):
    assert tower_of(name) == tower


def test_prompts_take_the_budget_that_goes_with_the_memory_mode(monkeypatch):
    backbone = small_backbone()
    explicit_attention(backbone.model)
    tokens_KL = backbone.tokenize(PROMPTS)
    monkeypatch.setattr(
        "so_clip.clip.classifier.TEXT_BUDGETS_MIB", {"fast": 1e3, "balanced": 1e-3, "small": 1e-3}
    )

    def chunks(memory: Memory, budget_mib: float | None = None) -> int:
        backbone.memory = memory
        return len(Classifier(backbone, tokens_KL, budget_mib).prompts.chunks)

    assert [chunks(memory) for memory in ("fast", "balanced", "small")] == [1, 3, 3]
    assert chunks("fast", 1e-3) == 3
    assert chunks("small", 1e3) == 1


def test_less_memory_is_never_a_larger_budget():
    assert tuple(TEXT_BUDGETS_MIB) == MEMORY_MODES
    assert [*TEXT_BUDGETS_MIB.values()] == sorted(TEXT_BUDGETS_MIB.values(), reverse=True)


def test_a_class_with_several_prompts_is_their_mean_made_unit_length():
    backbone = small_backbone()
    explicit_attention(backbone.model)
    texts = ["a dog", "a drawing of a dog", "a cat", "a drawing of a cat"]
    classifier = Classifier(backbone, backbone.tokenize(texts), prompts_per_class=2)
    assert classifier.class_count == 2
    class_KD = classifier.classes()
    text_PD = backbone.encode_text(backbone.tokenize(texts)).detach()
    for k in range(2):
        mean_D = (text_PD[2 * k] + text_PD[2 * k + 1]) / 2
        torch.testing.assert_close(class_KD[k], mean_D / mean_D.norm(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert classifier(IMAGES_BCHW).shape == (2, 2)


def test_other_prompts_take_the_place_of_the_first(classifier):
    first_KD = classifier.classes()
    tokens_PL = classifier.backbone.tokenize(["a dog", "two dogs", "three dogs"])
    classifier.use_prompts(tokens_PL)
    other_KD = classifier.classes()
    expected_KD = classifier.backbone.encode_text(tokens_PL)
    assert not torch.allclose(first_KD, other_KD)
    torch.testing.assert_close(other_KD, expected_KD, rtol=1e-4, atol=1e-5)


def test_parameters_are_named_as_the_model_names_them_and_the_heads_after_head(classifier):
    class Added(CosineHead):
        def __init__(self):
            super().__init__(100.0)
            self.extra = torch.nn.Parameter(torch.zeros(1))

    classifier.head = Added()
    named = classifier.named()
    assert named["head.extra"] is classifier.head.extra
    assert named["visual.conv1.weight"] is classifier.backbone.model.visual.conv1.weight


@pytest.mark.parametrize("how", ["load_state_dict", "in place", "an optimizer's step"])
def test_classes_are_encoded_anew_after_the_text_tower_was_changed(classifier, how):
    weights = _open(classifier, "text")
    with torch.no_grad():
        before_KD = classifier.classes()
    classifier(IMAGES_BCHW).sum().backward()
    with torch.no_grad():
        # Between the backward pass and the step, nothing has changed yet.
        assert torch.equal(classifier.classes(), before_KD)
    if how == "load_state_dict":
        state = {key: value + 0.1 for key, value in classifier.state_dict().items()}
        classifier.load_state_dict(state)
    elif how == "an optimizer's step":
        torch.optim.AdamW(weights, lr=0.1, fused=True).step()
    for weight in weights:
        if how == "in place":
            with torch.no_grad():
                weight.mul_(2)  # a constant would cancel: the layer's input has mean 0
    with torch.no_grad():
        after_KD = classifier.classes()
        classifier.forget_classes()
        expected_KD = classifier.classes()
    assert torch.equal(after_KD, expected_KD)
    assert not torch.allclose(after_KD, before_KD)


def test_a_frozen_text_tower_that_is_loaded_anew_encodes_anew(classifier):
    counts = _runs(classifier)
    before_KD = classifier.classes()
    assert classifier.classes() is before_KD
    assert counts["text"] == 1
    state = {key: value + 0.1 for key, value in classifier.state_dict().items()}
    classifier.load_state_dict(state)
    assert not torch.allclose(classifier.classes(), before_KD)
    assert counts["text"] == 2
