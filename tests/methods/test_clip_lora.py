"""CLIP-LoRA: what it adds, that it starts at zero-shot, its arithmetic and where it is put.

Held against the released code's formula and against models with the update inside their weights.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.clip_lora import ClipLoRA, LowRank, LowRankLinear
from so_clip.methods.random_draws import use_globally
from tests.helpers.clip_lora_cases import IMAGES_BCHW, PROMPTS, adapted, loss_of, small
from tests.helpers.command import call
from tests.helpers.small_models import small_backbone, weightless_backbone
from tests.oracles.lora_oracle import merged, published_linear


def test_vit_b16_gets_the_papers_184320_parameters() -> None:
    backbone = weightless_backbone()
    classifier = Classifier(backbone, backbone.tokenize(["a photo of a dog."]))
    factors = ClipLoRA(**options_of("adapter"))(classifier)
    assert sum(value.numel() for value in factors.values()) == 184_320
    assert len(factors) == 2 * 3 * (12 + 12)
    opened = {name for name, value in backbone.model.named_parameters() if value.requires_grad}
    assert opened == set(factors)
    for tower, width in (("visual.transformer", 768), ("transformer", 512)):
        for block in range(12):
            for part in ("q", "k", "v"):
                prefix = f"{tower}.resblocks.{block}.attn.in_proj.updates.{part}"
                assert factors[f"{prefix}.down"].shape == (2, width)
                assert factors[f"{prefix}.up"].shape == (width, 2)


def options_of(group: str, *overrides: str) -> dict[str, Any]:
    method = from_config(compose(["method=clip_lora", *overrides])).method
    options: dict[str, Any] = getattr(method, group).options
    return options


def test_the_method_is_the_papers() -> None:
    assert options_of("adapter", "seed=7") == {
        **{"rank": 2, "alpha": 1, "dropout": 0.25, "encoder": "both", "position": "all"},
        **{"seed": 7, "interpolation": 1},
    }
    settings = from_config(compose(["method=clip_lora", "shots=16"]))
    assert settings.method.optimizer is not None
    assert settings.method.optimizer.target == "torch.optim.AdamW"
    assert options_of("optimizer") == {
        **{"lr": 2e-4, "weight_decay": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8}
    }
    schedule = settings.schedule
    assert (schedule.max_steps, schedule.batch_size) == (500 * 16, 32)
    assert (schedule.stop_loss, schedule.lr_min) == (0, 1e-6)


def test_first_logits_are_bit_for_bit_zero_shot() -> None:
    classifier = small()
    with torch.no_grad():
        before = classifier(IMAGES_BCHW)
    before_training = classifier(IMAGES_BCHW)
    ClipLoRA()(classifier)
    with torch.no_grad():
        assert torch.equal(classifier(IMAGES_BCHW), before)
    torch.testing.assert_close(classifier(IMAGES_BCHW), before_training, rtol=0, atol=1e-4)


def test_first_factors_are_kaiming_uniform_and_second_factors_zero() -> None:
    classifier = small()
    for name, value in ClipLoRA(rank=32)(classifier).items():
        if name.endswith("up"):
            assert not value.any()
            continue
        bound = 1 / math.sqrt(value.shape[1])  # gain sqrt(2 / (1 + 5)) · sqrt(3 / inputs)
        assert value.abs().max() <= bound
        assert value.abs().max() > 0.99 * bound
        assert value.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


def test_first_factors_are_drawn_from_input_to_output_in_the_image_encoder_first() -> None:
    factors = ClipLoRA(seed=5)(small())
    draws = torch.Generator().manual_seed(5)
    for tower, width in (("visual.transformer", 64), ("transformer", 32)):
        for block, part in itertools.product(range(2), "qkv"):
            expected_RD = torch.empty(2, width)
            nn.init.kaiming_uniform_(expected_RD, a=math.sqrt(5), generator=draws)
            name = f"{tower}.resblocks.{block}.attn.in_proj.updates.{part}.down"
            assert torch.equal(factors[name], expected_RD), name


@pytest.mark.parametrize("encoder", ["vision", "text", "both"])
def test_logits_equal_those_of_a_model_with_merged_weights(encoder: str) -> None:
    classifier, own = small(), small_backbone()
    factors = adapted(classifier, encoder=encoder, rank=3, alpha=2.0)
    own.model = merged(own.model, factors, alpha=2.0)
    expected = Classifier(own, own.tokenize(PROMPTS))
    with torch.no_grad():
        torch.testing.assert_close(
            classifier(IMAGES_BCHW), expected(IMAGES_BCHW), rtol=0, atol=1e-3
        )
        assert (classifier(IMAGES_BCHW) - small()(IMAGES_BCHW)).abs().max() > 0.1


def test_values_and_gradients_equal_the_released_formula() -> None:
    draw = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    frozen = nn.Linear(6, 12, dtype=torch.float64).requires_grad_(False)
    updates = {part: LowRank(randn(2, 6), randn(4, 2), 0.7, 0.25) for part in ("q", "k", "v")}
    layer = LowRankLinear(frozen, updates)
    x_NI = randn(5, 6).requires_grad_()

    def output(seed: int) -> Tensor:
        with use_globally(torch.Generator().manual_seed(seed)):
            return layer(x_NI)

    with use_globally(torch.Generator().manual_seed(4)):
        kept = [torch.native_dropout(torch.ones(5, 6), 0.25, True)[1] for _ in updates]
    alpha = 0.7 * math.sqrt(2)
    expected = torch.cat(
        [
            published_linear(
                x_NI,
                frozen.weight[4 * i : 4 * i + 4],
                frozen.bias[4 * i : 4 * i + 4],
                update.down,
                update.up,
                alpha,
                kept[i],
                0.25,
            )
            for i, update in enumerate(updates.values())
        ],
        dim=1,
    )
    torch.testing.assert_close(output(4), expected, rtol=0, atol=1e-12)
    weights = randn(5, 12)
    wanted = [x_NI, *layer.updates.parameters()]
    found_grads = torch.autograd.grad((output(4) * weights).sum(), wanted)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for found, grad in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-12)


def test_only_the_factors_are_trained_and_the_models_names_stay() -> None:
    classifier = small()
    own = {name: value.clone() for name, value in classifier.backbone.model.state_dict().items()}
    factors = ClipLoRA()(classifier)
    loss_of(classifier).backward()
    graded = {n for n, p in classifier.backbone.model.named_parameters() if p.grad is not None}
    assert graded == set(factors)
    for name, value in factors.items():
        # With B = 0, the gradient of A is zero.
        assert value.grad is not None
        assert value.grad.any() == name.endswith("up"), name
    saved = classifier.backbone.model.state_dict()
    assert saved.keys() - own.keys() == set(factors)
    for name, value in own.items():
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize(
    ("position", "encoder", "blocks"),
    [
        ("all", "both", {"v0", "v1", "t0", "t1"}),
        ("top", "both", {"v1", "t1"}),
        ("half-bottom", "vision", {"v0"}),
        ("half-up", "text", {"t1"}),
    ],
)
def test_blocks_are_chosen_by_position_and_encoder(
    position: str, encoder: str, blocks: set[str]
) -> None:
    factors = ClipLoRA(position=position, encoder=encoder)(small())
    found = {
        ("v" if name.startswith("visual.") else "t") + name.partition("resblocks.")[2][0]
        for name in factors
    }
    assert found == blocks
    assert len(factors) == 6 * len(blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "adapter.rank=0: must be 1 or more"),
        ({"rank": 1.5}, "adapter.rank=1.5"),
        ({"rank": True}, "adapter.rank=True"),
        ({"alpha": 0}, "adapter.alpha=0: must be above 0"),
        ({"alpha": math.nan}, "adapter.alpha=nan"),
        ({"alpha": "1"}, "adapter.alpha=1: must be a finite number"),
        ({"dropout": 1}, "adapter.dropout=1: must be in [0, 1)"),
        ({"dropout": -0.1}, "adapter.dropout=-0.1"),
        ({"encoder": "txt"}, "adapter.encoder=txt: must be vision, text, both. Did you mean"),
        ({"position": "upper"}, "adapter.position=upper: must be one of all"),
        ({"seed": -1}, "adapter.seed=-1: must be 0 or more"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ClipLoRA(**options)
    assert message in str(caught.value)


def test_a_rank_above_the_matrixs_is_refused() -> None:
    with pytest.raises(InputError, match=r"rank=9999999999: a matrix .* wide"):
        ClipLoRA(rank=9999999999)(small())


def test_unsuitable_and_adapted_towers_are_errors() -> None:
    plain = small_backbone()  # nn.MultiheadAttention
    with pytest.raises(InputError, match="vision encoder of the small model has attention"):
        ClipLoRA()(Classifier(plain, plain.tokenize(PROMPTS)))
    classifier = small()
    ClipLoRA(encoder="text")(classifier)
    with pytest.raises(InputError, match=r"text encoder .* has it already"):
        ClipLoRA()(classifier)
    assert not any("visual" in n for n, p in classifier.named_parameters() if p.requires_grad)
    ClipLoRA(encoder="vision")(classifier)


@pytest.mark.slow
def test_a_run_of_the_command_line(tmp_path: Path) -> None:
    arguments = ["method=clip_lora", "shots=1", "schedule.max_steps=3", "evaluation.workers=0"]
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    (metrics,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    assert metrics["method_title"] == "CLIP-LoRA"
    assert metrics["steps"] == 3
    assert metrics["trainable_parameters"] == metrics["changed_parameters"] > 0
    assert metrics["optimizer_state_mib"] > 0


@pytest.mark.slow
def test_lora_factors_can_be_trained_sparsely(tmp_path: Path) -> None:
    arguments = ["method=clip_lora", "optimizer=so", "optimizer.density_ratio=0.1", "shots=1"]
    done = call(*arguments, "schedule.max_steps=2", f"results_dir={tmp_path}")
    assert done.code == 0, done.err


@pytest.mark.parametrize("shape", [(4, 4, 64), (4, 49, 96), (2, 16, 128), (8, 49, 64)])
def test_an_update_of_transposed_rows_rounds_alike_before_and_after_it_is_frozen(shape):
    images, rows, width = shape
    draw = torch.Generator().manual_seed(0)
    x_BLI = torch.randn(images, width, rows, generator=draw).transpose(1, 2)
    factors = torch.randn(2, width, generator=draw), torch.randn(width, 2, generator=draw)
    update = LowRank(*factors, scale=0.5, dropout=0.0).eval()
    with torch.inference_mode():
        trained_BLO = update(x_BLI)
        assert torch.equal(update.requires_grad_(False)(x_BLI), trained_BLO)
