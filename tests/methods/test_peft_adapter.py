"""peft's adapters in CLIP: their layers, values and random draws.

The reference is a model with the adapter merged into its weights.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.errors import InputError
from so_clip.methods.clip_lora import ClipLoRA
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_kinds import KINDS
from so_clip.methods.peft_layers import adapted_layers
from tests.helpers.command import call
from tests.helpers.peft_cases import (
    ATTENTION_IN,
    IMAGES_BCHW,
    NO_CHUNKS,
    OPTIONS,
    PROMPTS,
    ROLES,
    build,
    loss_of,
    moved,
    rows,
    small,
    vit_b16,
)
from tests.helpers.small_models import small_backbone
from tests.oracles.peft_oracle import MATRICES, merged


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("kind", MATRICES)
def test_logits_equal_those_of_a_model_with_merged_weights(kind: str, split_qkv: bool) -> None:
    classifier, own = small(dtype=torch.float64), small_backbone().to(torch.float64)
    options, scale = OPTIONS[kind]
    with torch.no_grad():
        before = classifier(IMAGES_BCHW)
    moved(build(kind, split_qkv=split_qkv, **options)(classifier))
    classifier.forget_classes()
    own.model = merged(own.model, classifier.backbone.model, MATRICES[kind], scale)
    expected = Classifier(own, own.tokenize(PROMPTS))
    with torch.no_grad():
        found = classifier(IMAGES_BCHW)
        # Embeddings are rounded to float32 on their way into logits.
        torch.testing.assert_close(found, expected(IMAGES_BCHW), rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.1


def test_lora_with_its_options_equals_clip_lora() -> None:
    options = {"rank": 2, "alpha": 1, "rank_stabilised": True, "split_qkv": True}
    parameters = Peft("lora", ATTENTION_IN, **options)(vit_b16())
    assert sum(value.numel() for value in parameters.values()) == 184_320
    theirs, ours = small(), small()
    factors = moved(ClipLoRA(rank=2, alpha=1, dropout=0)(theirs))
    with torch.no_grad():
        for name, value in Peft("lora", ATTENTION_IN, **options)(ours).items():
            name = name.replace("lora_A.default.weight", "down")
            name = name.replace("lora_B.default.weight", "up")
            for part in ("q", "k", "v"):
                name = name.replace(f"{part}_proj.", f"in_proj.updates.{part}.")
            value.copy_(factors.pop(name))
        assert not factors
        expected = theirs(IMAGES_BCHW)
        torch.testing.assert_close(ours(IMAGES_BCHW), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("encoder", ["vision", "text"])
def test_the_other_encoder_stays_frozen(encoder: str) -> None:
    # The text tower's names are what the vision tower's end in.
    classifier = small()
    parameters = Peft("lora", ROLES, encoder=encoder, rank=2)(classifier)
    assert {name.startswith("visual.") for name in parameters} == {encoder == "vision"}
    assert classifier.trains(encoder)
    assert not classifier.trains("text" if encoder == "vision" else "vision")
    assert len(parameters) == 2 * 2 * 4


@pytest.mark.parametrize("split_qkv", [False, True])
def test_the_models_names_and_values_stay(split_qkv: bool) -> None:
    classifier = small()
    own = {name: value.clone() for name, value in classifier.backbone.model.state_dict().items()}
    parameters = Peft("lora", ROLES, rank=2, split_qkv=split_qkv)(classifier)
    loss_of(classifier).backward()
    graded = {n for n, p in classifier.backbone.model.named_parameters() if p.grad is not None}
    assert graded == set(parameters)
    saved = classifier.backbone.model.state_dict()
    assert saved.keys() - own.keys() == set(parameters)
    for name, value in own.items():
        assert torch.equal(saved[name], value), name
    other = small_backbone(seed=1).model
    loaded = classifier.backbone.model.load_state_dict(other.state_dict(), strict=False)
    assert set(loaded.missing_keys) == set(parameters)
    assert not loaded.unexpected_keys
    saved = classifier.backbone.model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(saved[name], value), name


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "adalora", "miss", "delora", "randlora"])
def test_dropout_is_active_only_in_training(kind: str) -> None:
    classifier = small()
    options = OPTIONS.get(kind, ({"rank": 4}, 1.0))[0]
    moved(build(kind, dropout=0.25, **options)(classifier))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        quiet = classifier(IMAGES_BCHW)
        assert torch.equal(classifier(IMAGES_BCHW), quiet)
    first, second = classifier(IMAGES_BCHW), classifier(IMAGES_BCHW)
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(torch.random.get_rng_state(), before)
    classifier.eval()
    torch.testing.assert_close(classifier(IMAGES_BCHW), quiet, rtol=0, atol=2e-3)


def test_without_dropout_nothing_is_drawn_and_prompts_share_rows() -> None:
    classifier = small()
    shared = rows(classifier)
    moved(Peft("lora", ROLES)(classifier))
    assert rows(classifier) == shared
    assert not classifier._forward_pre_hooks
    assert torch.equal(classifier(IMAGES_BCHW), classifier(IMAGES_BCHW))
    Peft("vera", ATTENTION_IN, encoder="text", dropout=0.1)(fresh := small())
    assert rows(fresh) > shared
    Peft("vera", ATTENTION_IN, encoder="vision", dropout=0.1)(fresh := small())
    assert rows(fresh) == shared


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("budget_mib", [NO_CHUNKS, 0.1])
def test_a_recomputed_part_drops_the_same_values(budget_mib: float, memory: Memory) -> None:
    """With fixed random numbers, the gradient equals finite differences."""
    classifier = small(budget_mib, torch.float64)
    classifier.backbone.memory = memory
    factors = [*moved(Peft("lora", ROLES, rank=2, dropout=0.25)(classifier)).values()]
    before = [factor.detach().clone() for factor in factors]
    draw = torch.Generator().manual_seed(8)
    along = [torch.randn(b.shape, generator=draw, dtype=torch.float64) for b in before]
    (hook,) = classifier._forward_pre_hooks.values()

    def loss(offset: float) -> Tensor:
        for factor, origin, direction in zip(factors, before, along, strict=True):
            factor.data = origin + offset * direction
        hook.__self__.generator.manual_seed(5)
        return loss_of(classifier)

    numeric = (loss(1e-5).item() - loss(-1e-5).item()) / 2e-5
    loss(0).backward()
    pairs = zip(factors, along, strict=True)
    found = sum((f.grad * a).sum().item() for f, a in pairs if f.grad is not None)
    assert found == pytest.approx(numeric, rel=1e-3)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", [*OPTIONS, "shira", "lokr", "oft", "randlora", "fourierft"])
def test_gradients_are_the_same_in_every_memory_mode(kind: str) -> None:
    def gradients(mode: Memory) -> list[Tensor]:
        classifier = small(dtype=torch.float64)
        classifier.backbone.memory = mode
        options = {"frequencies": 50} if kind == "fourierft" else {"rank": 2}
        options = {} if kind == "oft" else options
        options = OPTIONS.get(kind, (options, 1.0))[0]
        parameters = moved(build(kind, **options)(classifier), by=0.01)
        return [*torch.autograd.grad(loss_of(classifier), [*parameters.values()])]

    modes = [gradients(memory) for memory in MEMORY_MODES]
    for fast, *others in zip(*modes, strict=True):
        for found in others:
            # Logits are in float32.
            torch.testing.assert_close(found, fast, rtol=1e-4, atol=1e-5)


def test_first_values_depend_on_the_seed_and_not_on_the_global_random_state() -> None:
    def factors(seed: int) -> list[Tensor]:
        return [*Peft("lora", ROLES, rank=2, seed=seed)(small()).values()]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = factors(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, factors(0)))
    assert not all(map(torch.equal, first, factors(1)))


def test_shiras_entries_differ_between_matrices_and_within_one() -> None:
    classifier = small()
    Peft("shira", ROLES, rank=2)(classifier)
    places: dict[tuple[int, int], list[set[tuple[int, int]]]] = {}
    for layer in adapted_layers(classifier):
        out, into = layer.out_features, layer.in_features
        entries = {(int(row), int(column)) for row, column in layer.shira_indices["default"].T}
        assert len(entries) == 2 * (out + into)
        places.setdefault((out, into), []).append(entries)
    assert all(first != second for first, second, *_ in places.values())


def test_shiras_matrix_equals_the_frozen_matrix_plus_its_entries() -> None:
    classifier = small(dtype=torch.float64)
    moved(Peft("shira", ROLES, rank=2)(classifier))
    layer = adapted_layers(classifier)[0]
    weight_OI = layer.base_layer.weight.clone()
    values = layer.shira_weight["default"]
    for (row, column), value in zip(layer.shira_indices["default"].T, values, strict=True):
        weight_OI[row, column] += value
    x_BI = torch.randn(3, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BI), F.linear(x_BI, weight_OI, layer.base_layer.bias))


def test_doras_values_and_gradients_equal_pefts() -> None:
    classifier = small(dtype=torch.float64)
    moved(Peft("dora", ROLES, rank=2)(classifier))
    layer = adapted_layers(classifier)[0]
    vector = layer.lora_magnitude_vector["default"]
    x_BI = torch.randn(3, layer.in_features, dtype=torch.float64, requires_grad=True)
    weights_BO = torch.randn(3, layer.out_features, dtype=torch.float64)
    wanted = [x_BI, *(p for p in layer.parameters() if p.requires_grad)]
    assert len(wanted) == 4

    def outcome() -> tuple[Tensor, ...]:
        y_BO = layer(x_BI)
        return y_BO, *torch.autograd.grad((y_BO * weights_BO).sum(), wanted)

    ours = outcome()
    del vector.forward
    for found, expected in zip(ours, outcome(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_zero_shot_and_learns_in_bf16(kind: str) -> None:
    classifier = small()
    classifier.backbone.memory = "fast"
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            before = classifier(IMAGES_BCHW)
        options = {"oft": {}, "fourierft": {"frequencies": 50}}.get(kind, {"rank": 2})
        options = OPTIONS.get(kind, (options, 1.0))[0]
        parameters = build(kind, **options)(classifier).values()
        classifier.forget_classes()
        with torch.no_grad():
            assert torch.equal(classifier(IMAGES_BCHW), before)
    assert {value.dtype for value in parameters} == {torch.float32}
    lr = 1e-1 if kind in ("vera", "fourierft") else 1e-2
    optimizer, losses = torch.optim.AdamW(parameters, lr=lr), []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(loss_of(classifier))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_a_resnets_text_tower_can_be_adapted() -> None:
    backbone = small_backbone(layers=(1, 1, 1, 1), width=8, head_width=16)
    explicit_attention(backbone.model)
    classifier = Classifier(backbone, backbone.tokenize(PROMPTS))
    assert Peft("lora", ROLES, encoder="text", split_qkv=True)(classifier)
    with pytest.raises(InputError, match=r"vision encoder of .* has none of them"):
        Peft("lora", ROLES, split_qkv=True)(classifier)


@pytest.mark.slow
def test_runs_of_the_command_line(tmp_path: Path) -> None:
    for overrides in (["method=dora"], ["method=lora", "optimizer=so", "adapter.position=top"]):
        arguments = [*overrides, "shots=1", "schedule.max_steps=2", "evaluation.workers=0"]
        done = call(*arguments, f"results_dir={tmp_path}")
        assert done.code == 0, done.err
