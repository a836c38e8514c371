"""CoOp and CoCoOp: values and gradients against whole prompts through open_clip's own tower."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.packed_text import PackedPrompts
from so_clip.clip.prompts import class_prompts
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.methods.coop import CoCoOp, CoOp
from so_clip.methods.coop_prompts import ContextEmbedding
from so_clip.runtime.peak_memory import PeakMemory
from tests.helpers.command import call
from tests.helpers.small_models import small_backbone, small_clip, weightless_backbone
from tests.oracles.context_oracle import class_embeddings, meta_net

# The first three begin alike: what all prompts share is more than the template's words.
NAMES = ["dog", "dog house", "dog_house roof", "very small cat", "!?"]
PLAIN = "a photo of a {}."
NO_CHUNKS = 1e9
IMAGES_BCHW = torch.randint(
    256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
NO_IMAGES: Any = None  # CoOp does not read the few-shot images


def small(
    names: list[str] = NAMES,
    template: str = PLAIN,
    budget_mib: float = NO_CHUNKS,
    dtype: torch.dtype = torch.float64,
) -> Classifier:
    backbone = small_backbone().to(dtype)
    explicit_attention(backbone.model)
    tokens_PL = backbone.tokenize(class_prompts(names, [template]))
    return Classifier(backbone, tokens_PL, budget_mib, templates=[template])


def started(classifier: Classifier, adapter: CoOp) -> dict[str, nn.Parameter]:
    """Add and start an adapter, and change its first values."""
    parameters = adapter(classifier)
    adapter.start(classifier, NO_IMAGES)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype) / 20)
    return parameters


def embed(images_BCHW: Tensor = IMAGES_BCHW) -> Tensor:
    backbone = small_backbone().double()
    with torch.no_grad():
        return backbone.encode_image(images_BCHW)


def spaced(names: list[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize(
    ("names", "budget_mib"), [(NAMES, NO_CHUNKS), (NAMES, 0.0), (NAMES[:1], NO_CHUNKS)]
)
def test_coop_equals_open_clips_tower_on_inserted_vectors(
    names: list[str], budget_mib: float, memory: Memory
) -> None:
    classifier = small(names, budget_mib=budget_mib)
    classifier.backbone.memory = memory
    (context_MW,) = started(classifier, CoOp(length=5)).values()
    assert len(classifier.prompts.chunks) == (1 if budget_mib else len(names))
    weights_BK = torch.randn(3, len(names), generator=torch.Generator().manual_seed(4)).double()
    logits_BK = classifier(IMAGES_BCHW)
    (found_MW,) = torch.autograd.grad((logits_BK * weights_BK).sum(), context_MW)

    own = context_MW.detach().clone().requires_grad_()
    model = small_clip().double().requires_grad_(False)
    class_KD = class_embeddings(model, classifier.backbone.tokenize, spaced(names), own)
    expected_BK = 100 * embed() @ class_KD.T
    (expected_MW,) = torch.autograd.grad((expected_BK * weights_BK).sum(), own)
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-8)
    torch.testing.assert_close(found_MW, expected_MW, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(classifier(IMAGES_BCHW), expected_BK, rtol=0, atol=1e-8)


@pytest.mark.parametrize("template", ["{} texture.", "a photo of a {}, a type of pet.", "{}"])
def test_the_text_after_the_name_stays(template: str) -> None:
    classifier = small(template=template)
    (context_MW,) = started(classifier, CoOp(length=3)).values()
    model = small_clip().double()
    end = template.partition("{}")[2]
    tokenize = classifier.backbone.tokenize
    with torch.no_grad():
        expected_KD = class_embeddings(model, tokenize, spaced(NAMES), context_MW, end)
        torch.testing.assert_close(classifier.classes(), expected_KD, rtol=0, atol=1e-9)


def test_prompts_share_the_context_and_its_ids_are_negative() -> None:
    classifier = small()
    started(classifier, CoOp(length=5))
    assert classifier.tokens_PL[:, 1:6].tolist() == [[-1, -2, -3, -4, -5]] * len(NAMES)
    (chunk,) = classifier.prompts.chunks
    assert isinstance(chunk, PackedPrompts)
    rows = ["start", *range(5), "dog", ".", "end", "house", ".", "end", "roof", ".", "end"]
    rows += ["very", "small", "cat", ".", "end", "!", "?.", "end"]
    assert len(chunk.tokens_N) == len(rows)


@pytest.mark.parametrize("budget_mib", [NO_CHUNKS, 0.0])
@pytest.mark.parametrize("images", [1, 3])
def test_cocoop_equals_open_clips_tower_with_one_context_per_image(
    images: int, budget_mib: float
) -> None:
    classifier = small(budget_mib=budget_mib)
    parameters = started(classifier, CoCoOp())
    weights_BK = torch.randn(images, len(NAMES), generator=torch.Generator().manual_seed(4))
    logits_BK = classifier(IMAGES_BCHW[:images])
    found = torch.autograd.grad((logits_BK * weights_BK).sum(), [*parameters.values()])

    context_MW, *net = own = [
        value.detach().clone().requires_grad_() for value in parameters.values()
    ]
    model, rows = small_clip().double().requires_grad_(False), []
    tokenize = classifier.backbone.tokenize
    for image_D in embed()[:images]:
        shifted_MW = context_MW + meta_net(image_D, net)
        rows.append(100 * class_embeddings(model, tokenize, spaced(NAMES), shifted_MW) @ image_D)
    expected_BK = torch.stack(rows)
    expected = torch.autograd.grad((expected_BK * weights_BK).sum(), own)
    torch.testing.assert_close(logits_BK, expected_BK, rtol=0, atol=1e-8)
    for found_grad, grad in zip(found, expected, strict=True):
        assert grad.abs().sum() > 0
        torch.testing.assert_close(found_grad, grad, rtol=1e-8, atol=1e-8)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(IMAGES_BCHW[:images]), expected_BK, rtol=0, atol=1e-8)


def test_the_memory_of_cocoops_prompts_does_not_grow_with_the_images() -> None:
    peaks = {}
    for images in (2, 8):
        names = [f"number {i}" for i in range(30)]
        classifier = small(names, budget_mib=0.5, dtype=torch.float32)
        optimizer = torch.optim.SGD([*started(classifier, CoCoOp()).values()], lr=1e-3)
        image_BD = embed().float()[:1].expand(images, -1)
        with PeakMemory(classifier, optimizer, torch.device("cpu")) as watched:
            classifier.logits(image_BD).sum().backward()
        peaks[images] = watched.result()["activations_mib"]
    assert peaks[8] < 1.5 * peaks[2]


def on_meta() -> Classifier:
    backbone = weightless_backbone()
    return Classifier(backbone, backbone.tokenize(["a photo of a dog."]), templates=[PLAIN])


def test_vit_b16_has_the_published_number_of_parameters() -> None:
    classifier = on_meta()
    context = CoOp()(classifier)
    assert {name: tuple(value.shape) for name, value in context.items()} == {
        "token_embedding.context": (16, 512)
    }
    assert sum(value.numel() for value in context.values()) == 8_192
    assert [n for n, p in classifier.named().items() if p.requires_grad] == [*context]
    conditional = CoCoOp()(on_meta())
    assert conditional["token_embedding.context"].shape == (4, 512)
    assert conditional["token_embedding.meta_net.0.weight"].shape == (32, 512)
    assert sum(value.numel() for value in conditional.values()) == 35_360


def options_of(method: str, group: str) -> dict[str, Any]:
    chosen = from_config(compose([f"method={method}", "shots=16", "seed=7"])).method
    options: dict[str, Any] = getattr(chosen, group).options
    return options


def test_the_methods_have_the_papers_settings() -> None:
    random = {"length": "auto", "words": None, "std": 0.02, "seed": 7}
    assert options_of("coop", "adapter") == random
    words = {"words": "a photo of a", "reduction": 16}
    assert options_of("cocoop", "adapter") == random | words
    for method, batch_size, steps in (("coop", 32, 200 * 5), ("cocoop", 1, 10 * 160)):
        schedule = from_config(compose([f"method={method}", "shots=16"])).schedule
        assert (schedule.max_steps, schedule.batch_size) == (steps, batch_size)
        assert (schedule.stop_loss, schedule.lr_min) == (0, 0)
        optimizer = options_of(method, "optimizer")
        assert optimizer == {"lr": 2e-3, "momentum": 0.9, "weight_decay": 5e-4}


def test_coops_steps_are_those_of_its_authors_epochs() -> None:
    config = compose(["method=coop"])
    for dataset, shots, steps in (
        ("eurosat", 1, 50),  # 10 images are one batch
        ("dtd", 2, 100 * 2),  # 94 images, whole batches only
        ("dtd", 4, 100 * 5),
        ("dtd", 8, 200 * 11),
        ("sun397", 16, 200 * 198),
        ("imagenet", 1, 50 * 31),
        ("imagenet", 16, 50 * 500),
    ):
        config.dataset.name, config.shots = dataset, shots
        assert config.schedule.max_steps == steps


def test_cocoops_steps_are_10_epochs_of_the_classes_that_it_trains_on() -> None:
    config = compose(["method=cocoop", "shots=16", "dataset=dtd"])
    assert config.schedule.max_steps == 10 * 47 * 16
    config.protocol = "base_to_new"
    assert config.schedule.max_steps == 10 * 24 * 16


@pytest.mark.parametrize("adapter", [CoOp(), CoCoOp()])
def test_before_start_the_logits_are_bit_for_bit_zero_shot(adapter: CoOp) -> None:
    classifier = small(dtype=torch.float32)
    with torch.no_grad():
        before_BK = classifier(IMAGES_BCHW)
        adapter(classifier)
        classifier.forget_classes()
        assert torch.equal(classifier(IMAGES_BCHW), before_BK)
        adapter.start(classifier, NO_IMAGES)
        assert (classifier(IMAGES_BCHW) - before_BK).abs().max() > 1e-3


def test_with_the_templates_words_it_starts_at_zero_shot() -> None:
    classifier = small(dtype=torch.float32)
    with torch.no_grad():
        before_BK = classifier(IMAGES_BCHW)
        adapter = CoOp(words="A photo of a")
        (context_MW,) = adapter(classifier).values()
        adapter.start(classifier, NO_IMAGES)
        assert context_MW.shape == (4, 32)
        assert torch.equal(classifier(IMAGES_BCHW), before_BK)


def test_random_first_values_depend_only_on_the_seed() -> None:
    before = torch.random.get_rng_state()
    contexts = [CoOp(seed=seed)(small())["token_embedding.context"] for seed in (0, 0, 1)]
    nets = [CoCoOp(seed=seed)(small())["token_embedding.meta_net.2.weight"] for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    for first, again, other in (contexts, nets):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert contexts[0].std().item() == pytest.approx(0.02, rel=0.15)
    # As torch draws a Linear's: uniform within 1 / sqrt(inputs).
    net = CoCoOp(reduction=2)(small())
    for layer, inputs in (("0", 32), ("2", 16)):
        for kind in ("weight", "bias"):
            largest = net[f"token_embedding.meta_net.{layer}.{kind}"].abs().max().item()
            assert 0.7 / math.sqrt(inputs) < largest < 1 / math.sqrt(inputs)


@pytest.mark.parametrize("adapter", [CoOp(length=6), CoCoOp()])
def test_the_learned_context_works_for_other_classes(adapter: CoOp) -> None:
    classifier, others = small(), ["horse", "sea horse"]
    learned = started(classifier, adapter)
    tokens_PL = classifier.backbone.tokenize(class_prompts(others, [PLAIN]))
    classifier.use_prompts(adapter.prompts_for(classifier, tokens_PL))
    expected = small(others)
    for name, value in started(expected, adapter).items():
        value.data.copy_(learned[name])
    with torch.no_grad():
        expected.forget_classes()
        assert torch.equal(classifier(IMAGES_BCHW), expected(IMAGES_BCHW))


def test_the_embedding_of_other_tokens_does_not_change() -> None:
    classifier = small()
    model = classifier.backbone.model
    weight = model.token_embedding.weight
    names = set(model.state_dict())
    CoOp(length=2)(classifier)
    assert isinstance(model.token_embedding, ContextEmbedding)
    assert model.token_embedding.weight is weight
    assert set(model.state_dict()) - names == {"token_embedding.context"}
    tokens_N = torch.tensor([[5, 49407], [0, -2]])
    found = model.token_embedding(tokens_N)
    assert torch.equal(found[0], weight[[5, 49407]])
    assert torch.equal(found[1, 0], weight[0])
    assert torch.equal(found[1, 1], model.token_embedding.context[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_a_run_of_the_command_line(method: str, tmp_path: Path) -> None:
    arguments = [f"method={method}", "shots=1", "schedule.max_steps=3", "evaluation.workers=0"]
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    (metrics,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    assert metrics["steps"] == 3
    assert metrics["trainable_parameters"] * 0.99 < metrics["changed_parameters"]
    assert metrics["zero_shot_accuracy_percent"] == pytest.approx(61.30, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "count"), [("coop", 8_192), ("cocoop", 35_360)])
def test_a_run_on_vit_b16_can_be_forecast(method: str, count: int) -> None:
    arguments = [f"method={method}", "dataset=eurosat", "backbone=vit_b16", "device=cpu"]
    done = call("forecast", *arguments, "evaluation.batch_size=2", "--json")
    assert done.code == 0, done.err
    forecast = json.loads(done.out)
    assert forecast["trainable_parameters"] == count
    assert forecast["flops_per_step"] > forecast["forward_flops_per_step"] > 0
