"""Memory modes and the class row in towers that run their own code: the same numbers, less kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.engine.blocks import MEMORY_MODES
from so_clip.clip.engine.image_tower import (
    encode_image,
    in_pieces,
    is_read_at_class_token,
    most_values,
)
from so_clip.clip.engine.memory_record import memory_record
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.engine.tower_blocks import blocks_in, reads_class_row, refusal
from so_clip.clip.towers import block_lists, text_blocks
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.small_families import FAMILIES, small_backbone, small_images

SLOW = pytest.mark.slow
OWN_CODE = [
    *("coca", "resnet", "convnext", "convnext_mlp", "siglip", "siglip_i18n", "eva01", "eva02_e"),
    *("eva02_b", "pe_core", "pe_core_g", "vitamin", "mobileclip_b", "mobileclip_l", "fastvit_s0"),
    *("fastvit_s3", "swin", "relative_position", "average_pooled"),
]
TEXTS = ["coca", "siglip", "bert", "mt5", "nllb"]
QUICK = {"siglip", "eva02_b", "convnext", "vitamin", "resnet", "bert"}
CLASS_ROW = {"eva01", "eva02_e", "eva02_b", "mobileclip_b", "mobileclip_l", "relative_position"}
# The kept bytes with balanced and small, relative to fast, are lower than these.
BALANCED = {"resnet": 1.0, "mt5": 1.01, "nllb": 0.9}
SMALL = {"coca": 0.5}


def rows(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else SLOW) for name in names]


def pixels(backbone: Any, count: int = 3) -> Tensor:
    images_BCHW = small_images(backbone, count).double() / 255
    return (images_BCHW - backbone.mean) / backbone.std


def gradients(tower: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    """Return the output, and the gradients of a loss that weighs every value differently."""
    output = run()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    grads = torch.autograd.grad(
        (output * weights).sum(), [*tower.parameters()], allow_unused=True, materialize_grads=True
    )
    return [output.detach(), *grads]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for item, other in zip(found, expected, strict=True):
        torch.testing.assert_close(item, other, rtol=1e-10, atol=1e-11)


def train_matrices(tower: nn.Module) -> None:
    """Train only the matrices and kernels of the blocks."""
    tower.requires_grad_(False)
    for blocks in block_lists(tower).values():
        for parameter in blocks.parameters():
            parameter.requires_grad_(parameter.ndim > 1)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("family", rows(OWN_CODE))
def test_images_have_the_embeddings_and_gradients_of_open_clip(family: str) -> None:
    backbone = small_backbone(family).double()
    model, visual = backbone.model, backbone.model.visual
    assert not is_read_at_class_token(model)
    assert reads_class_row(visual) == (family in CLASS_ROW)
    images_BCHW = pixels(backbone)
    visual.requires_grad_(True)
    expected = gradients(visual, lambda: model.encode_image(images_BCHW))
    for memory in MEMORY_MODES:
        assert_equal(gradients(visual, partial(encode_image, model, images_BCHW, memory)), expected)
    with torch.no_grad():
        outputs = [encode_image(model, images_BCHW, memory) for memory in MEMORY_MODES]
    assert all(torch.equal(output, outputs[0]) for output in outputs)

    train_matrices(visual)
    known = [images_BCHW, *visual.parameters(), *visual.buffers()]
    fast, balanced, small = (
        kept_bytes(partial(encode_image, model, images_BCHW, memory), known)
        for memory in MEMORY_MODES
    )
    assert balanced < BALANCED.get(family, 0.85) * fast
    assert small < SMALL.get(family, 0.3) * fast


@pytest.mark.parametrize("family", rows(TEXTS))
def test_prompts_have_the_embeddings_and_gradients_of_open_clip(family: str) -> None:
    backbone = small_backbone(family).double()
    model, tower = backbone.model, text_blocks(backbone.model)
    tokens_KL = backbone.tokenize(["a photo of a cat.", "a dog."])
    prompts = ClassPrompts(model, tokens_KL, share_prefixes=False)
    tower.requires_grad_(True)
    expected = gradients(tower, lambda: model.encode_text(tokens_KL))
    for memory in MEMORY_MODES:
        assert_equal(gradients(tower, partial(prompts, model, memory)), expected)

    train_matrices(tower)
    known = [*model.parameters(), *model.buffers()]
    fast, balanced, small = (
        kept_bytes(partial(prompts, model, memory), known) for memory in MEMORY_MODES
    )
    assert balanced < BALANCED.get(family, 0.85) * fast
    assert small < 0.3 * fast


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_all_memory_modes(family: str) -> None:
    model = small_backbone(family).model
    for tower in (model.visual, text_blocks(model)):
        assert block_lists(tower)
        assert [refusal(tower, memory) for memory in MEMORY_MODES] == [None] * 3


def test_the_reason_is_given_where_a_mode_cannot_be_used() -> None:
    resnet = small_backbone("resnet").model.visual
    resnet.layer1.train()
    assert "batch normalisation" in (refusal(resnet, "small") or "")
    assert refusal(resnet, "fast") is None
    siglip = small_backbone("siglip").model.visual
    siglip.set_grad_checkpointing()
    assert "checkpointing" in (refusal(siglip, "balanced") or "")
    assert "no list of blocks" in (refusal(nn.Linear(2, 2), "small") or "")


def test_swiglu_keeps_only_the_inputs_of_its_product() -> None:
    backbone = small_backbone("eva02_b")
    block = backbone.model.visual.trunk.blocks[0]
    train_matrices(backbone.model.visual)
    x_BLD = torch.randn(3, 17, 64, requires_grad=True)
    unit = x_BLD.nbytes
    hidden = 170 * unit / 64  # eight thirds of the width, in three layers
    kept = {
        memory: kept_bytes(lambda m=memory: _one_block(backbone, m, x_BLD), [x_BLD])
        for memory in MEMORY_MODES
    }
    assert kept["fast"] - kept["balanced"] >= 2 * unit + 3 * hidden
    assert kept["small"] < 1.2 * unit
    assert block.mlp.fc1_g.out_features == 170


def _one_block(backbone: Any, memory: Any, x_BLD: Tensor) -> Tensor:
    trunk = backbone.model.visual.trunk
    with blocks_in(trunk, memory):
        y_BLD: Tensor = trunk.blocks[0](x_BLD, rope=trunk.rope.get_embed())
    return y_BLD


@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_sampled_gradients_are_the_dense_ones(memory: Any) -> None:
    backbone = small_backbone("siglip")
    model, visual = backbone.model, backbone.model.visual
    images_BCHW = pixels(backbone).float()
    train_matrices(visual)
    named = {name: p for name, p in visual.named_parameters() if p.requires_grad}
    optimizer = SO(named.values(), density_ratio=0.01)
    encode_image(model, images_BCHW).square().sum().backward()
    dense = {name: parameter.grad for name, parameter in named.items()}
    optimizer.zero_grad()
    with sampled_gradients(model, optimizer):
        encode_image(model, images_BCHW, memory).square().sum().backward()
    for name, parameter in named.items():
        support_M = optimizer.support(parameter)
        assert support_M is not None
        expected_M = dense[name].take(support_M)
        torch.testing.assert_close(parameter.grad.values_M, expected_M, rtol=1e-4, atol=1e-4)


def test_bf16_autocast_is_as_exact_with_balanced() -> None:
    backbone = small_backbone("siglip")
    model, visual = backbone.model, backbone.model.visual
    train_matrices(visual)
    images_BCHW = pixels(backbone).float()
    matrices = [p for p in visual.parameters() if p.requires_grad]
    found = []
    for memory in MEMORY_MODES:
        with torch.autocast("cpu", torch.bfloat16):
            output_BD = encode_image(model, images_BCHW, memory)
        found.append(torch.autograd.grad(output_BD.float().square().sum(), matrices))
    for grads in found[1:]:
        assert all(torch.equal(grad, fast) for grad, fast in zip(grads, found[0], strict=True))


@pytest.mark.parametrize("family", ["siglip", "convnext"])
def test_a_batch_runs_in_pieces(family: str) -> None:
    backbone = small_backbone(family)
    model = backbone.model
    one_BCHW = pixels(backbone, 1).float()
    state = torch.get_rng_state()
    values = most_values(model, lambda: model.encode_image(one_BCHW))
    assert torch.equal(torch.get_rng_state(), state)
    # SigLIP: 16 rows of the MLP's 256. ConvNeXt: 16 x 16 places of the first MLP's 64.
    assert values == {"siglip": 16 * 256, "convnext": 256 * 64}[family]
    images_BCHW = torch.empty(5000, 1, 1, 1)
    count = {"siglip": 3, "convnext": 10}[family]
    assert len(in_pieces(model, images_BCHW, values)) == count
    assert len(in_pieces(model, images_BCHW)) == 1
    model.visual.append = nn.BatchNorm2d(1).train()
    assert len(in_pieces(model, images_BCHW, values)) == 1


def test_a_backbone_splits_by_the_largest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small_backbone("siglip")
    images_BCHW = small_images(backbone, 5)
    whole_BD = backbone.encode_image(images_BCHW)
    monkeypatch.setattr("so_clip.clip.engine.image_tower._CPU_PIECE", 2 * 16 * 256)
    counts: list[int] = []
    backbone.model.visual.register_forward_pre_hook(lambda _, x: counts.append(len(x[0])))
    torch.testing.assert_close(backbone.encode_image(images_BCHW), whole_BD)
    assert counts == [2, 2, 1]


def test_the_record_names_the_modes_and_the_reasons() -> None:
    def record(family: str, memory: Any, model_change: Callable[[Any], Any] = id) -> dict[str, Any]:
        backbone = small_backbone(family)
        prompts = ClassPrompts(backbone.model, backbone.tokenize(["a cat.", "a dog."]))
        model_change(backbone.model)
        return memory_record(backbone.model, prompts, memory)

    same = {"vision_memory_reason": None, "text_memory_reason": None}
    small = {"vision_memory": "small", "text_memory": "small"} | same
    assert record("vit", "small") == small | {"vision_last_block": "class row"}
    assert record("eva02_b", "small") == small | {"vision_last_block": "class row"}
    assert record("siglip", "small")["vision_last_block"].startswith("all rows")
    changed = record("siglip", "balanced", lambda model: model.set_grad_checkpointing())
    assert (changed["vision_memory"], changed["text_memory"]) == ("fast", "fast")
    assert "checkpointing is on" in changed["vision_memory_reason"]
    assert "checkpointing is on" in changed["text_memory_reason"]
