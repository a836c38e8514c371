"""CLIP-LoRA's dropout: its rate, its memory, its random draws, and when it is active."""

import math

import pytest
import torch
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.packed_text import PackedPrompts
from so_clip.methods.clip_lora import ClipLoRA, LowRank
from so_clip.methods.random_draws import use_globally
from so_clip.runtime.peak_memory import PeakMemory
from tests.helpers.clip_lora_cases import IMAGES_BCHW, NO_CHUNKS, PROMPTS, adapted, loss_of, small
from tests.helpers.small_models import small_backbone


def test_each_call_drops_a_quarter_and_scales_the_rest() -> None:
    eye = torch.eye(64)
    update = LowRank(eye, eye, 1.0, 0.25)
    x_NI = torch.ones(2000, 64)
    with use_globally(torch.Generator().manual_seed(0)):
        first, second = update(x_NI).detach(), update(x_NI).detach()
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.75])
    dropped, dropped_again = first == 0, second == 0
    count = dropped.numel()
    for share, expected in (
        (dropped.sum() / count, 1 / 4),
        ((dropped & dropped_again).sum() / count, 1 / 16),
    ):
        assert share.item() == pytest.approx(expected, abs=5 * math.sqrt(0.25 / count))
    assert dropped.float().mean(0).max() < 0.32, "some column is dropped too often"


def test_dropout_is_active_only_in_training() -> None:
    classifier = small()
    adapted(classifier)
    with torch.no_grad():
        quiet = classifier(IMAGES_BCHW)
        assert torch.equal(classifier(IMAGES_BCHW), quiet)
    assert not torch.equal(classifier(IMAGES_BCHW), classifier(IMAGES_BCHW))
    classifier.eval()
    torch.testing.assert_close(classifier(IMAGES_BCHW), quiet, rtol=0, atol=1e-3)
    classifier.train()
    assert (classifier(IMAGES_BCHW) - quiet).abs().max() > 0.01


def test_without_dropout_nothing_is_drawn_and_prompts_share_rows() -> None:
    classifier = small()
    shared = rows(classifier)
    adapted(classifier, dropout=0)
    assert rows(classifier) == shared
    assert torch.equal(classifier(IMAGES_BCHW), classifier(IMAGES_BCHW))


def rows(classifier: Classifier) -> int:
    chunks = [chunk for chunk in classifier.prompts.chunks if isinstance(chunk, PackedPrompts)]
    return sum(len(chunk.tokens_N) for chunk in chunks)


def test_each_prompt_drops_different_values() -> None:
    # The same prompt twice, as the released code would encode it: with other values dropped.
    backbone = small_backbone()
    explicit_attention(backbone.model)
    classifier = Classifier(backbone, backbone.tokenize(["a photo of a dog."] * 2))
    adapted(classifier, encoder="text")
    class_KD = classifier.classes()
    assert (class_KD[0] - class_KD[1]).abs().max() > 1e-4
    with torch.no_grad():
        class_KD = classifier.classes()
    torch.testing.assert_close(class_KD[0], class_KD[1], rtol=0, atol=1e-6)
    # Dropout in one tower does not affect the other.
    classifier = small()
    shared = rows(classifier)
    ClipLoRA(encoder="vision")(classifier)
    assert rows(classifier) == shared
    lengths = (classifier.backbone.tokenize(PROMPTS) != 0).sum(1)
    ClipLoRA(encoder="text")(classifier)
    assert rows(classifier) == lengths.sum()


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize(("budget_mib", "chunks"), [(NO_CHUNKS, 1), (0.1, 2)])
def test_a_recomputed_part_drops_the_same_values(
    budget_mib: float, chunks: int, memory: Memory
) -> None:
    """With fixed random numbers, the gradient equals finite differences."""
    classifier = small(budget_mib, torch.float64)
    classifier.backbone.memory = memory
    factors = [*adapted(classifier).values()]
    assert len(classifier.prompts.chunks) == chunks
    for factor in factors:
        factor.data = factor.data.double()
    before = [factor.detach().clone() for factor in factors]
    draw = torch.Generator().manual_seed(8)
    along = [torch.randn(b.shape, generator=draw, dtype=torch.float64) for b in before]

    def loss(offset: float) -> Tensor:
        for factor, origin, direction in zip(factors, before, along, strict=True):
            factor.data = origin + offset * direction
        dropout_generator(classifier).manual_seed(5)
        return loss_of(classifier)

    numeric = (loss(1e-4).item() - loss(-1e-4).item()) / 2e-4
    loss(0).backward()
    pairs = zip(factors, along, strict=True)
    found = sum((f.grad * a).sum().item() for f, a in pairs if f.grad is not None)
    assert found == pytest.approx(numeric, rel=1e-5)


def dropout_generator(classifier: Classifier) -> torch.Generator:
    (hook,) = classifier._forward_pre_hooks.values()
    return hook.__self__.generator


def trained(budget_mib: float = NO_CHUNKS, seed: int = 0, steps: int = 4) -> list[Tensor]:
    classifier = small(budget_mib)
    factors = [*ClipLoRA(seed=seed)(classifier).values()]
    optimizer = torch.optim.AdamW(factors, lr=1e-2)
    for _ in range(steps):
        loss_of(classifier).backward()
        optimizer.step()
        optimizer.zero_grad()
    return factors


@pytest.mark.parametrize("budget_mib", [NO_CHUNKS, 0.0])
def test_results_depend_on_the_seed_and_not_on_the_global_random_state(budget_mib: float) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = trained(budget_mib)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = trained(budget_mib), trained(budget_mib, seed=1)
    assert all(map(torch.equal, first, second))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_failed_forward_pass_restores_the_random_state() -> None:
    classifier = small()
    adapted(classifier)
    before = torch.random.get_rng_state()
    with pytest.raises(TypeError, match="uint8"):
        classifier(IMAGES_BCHW.float())
    assert torch.equal(torch.random.get_rng_state(), before)
    loss_of(classifier).backward()


def test_the_dropout_mask_is_saved_as_bytes() -> None:
    # q, k and v each keep the values left of a block's input, and which these are: 3 · (4 + 1).
    peaks = {}
    for dropout in (0.25, 0):
        classifier = small()
        factors = ClipLoRA(encoder="vision", dropout=dropout)(classifier)
        optimizer = torch.optim.AdamW([*factors.values()])
        with PeakMemory(classifier, optimizer, torch.device("cpu")) as watched:
            loss_of(classifier).backward()
        peaks[dropout] = watched.result()["peak_memory_mib"] * 2**20
    values = 2 * len(IMAGES_BCHW) * 17 * 64  # of two blocks
    assert peaks[0.25] - peaks[0] < values * 3 * (4 + 1.2)
