"""CLIP-LoRA and peft's LoRA on query, key and value of every family that open_clip builds.

Query, key and value are one matrix or three, and each family has other names for them.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.blocks import MEMORY_MODES
from so_clip.clip.towers import TOWERS
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter
from so_clip.methods.clip_lora import ClipLoRA
from so_clip.methods.peft_adapter import Peft
from tests.helpers.small_families import FAMILIES, small_backbone, small_images

SLOW = pytest.mark.slow
# Families with one matrix, with three, with a bias of the query and the value alone, and with a
# text tower of transformers.
FAST = ("eva01", "eva02_b", "fastvit_s0", "mt5")
CASES = [pytest.param(family, marks=() if family in FAST else SLOW) for family in FAMILIES]
WITHOUT_ATTENTION = ("resnet", "convnext", "convnext_mlp")
PROMPTS = ["a photo of a dog", "a drawing of two very small cats", "a photo of a cat"]


def classifier_of(family: str) -> Classifier:
    backbone = small_backbone(family)
    return Classifier(backbone, backbone.tokenize(PROMPTS))


def images_of(classifier: Classifier) -> Tensor:
    return small_images(classifier.backbone, 3)


def logits_of(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        return classifier(images_of(classifier))


def methods(family: str) -> Iterator[tuple[Adapter, str]]:
    """Return CLIP-LoRA and peft's LoRA with their names of B, which starts at zero."""
    encoder = "text" if family in WITHOUT_ATTENTION else "both"
    yield ClipLoRA(rank=2, dropout=0.0, encoder=encoder), "up"
    lora: dict[str, Any] = {"rank": 2, "split_qkv": True, "encoder": encoder}
    yield Peft("lora", ["attention_in"], **lora), "lora_B.default.weight"


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("family", CASES)
def test_query_key_and_value_of_every_block_get_an_update(family: str) -> None:
    for method, second in methods(family):
        classifier = classifier_of(family)
        model = classifier.backbone.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        zero_shot_BK = logits_of(classifier)
        blocks = {
            (part.tower, part.block)
            for part in classifier.backbone.role_map()
            if "attention_in" in part.roles
            and (part.tower == "text" or family not in WITHOUT_ATTENTION)
        }
        factors = method(classifier)
        assert len(factors) == 2 * 3 * len(blocks)
        assert len({tower for tower, _ in blocks}) == (1 if family in WITHOUT_ATTENTION else 2)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(factors)
        # Peft copies the parts of a matrix, and one product becomes three: equal up to rounding.
        torch.testing.assert_close(logits_of(classifier), zero_shot_BK, rtol=0, atol=1e-3)

        loss = F.cross_entropy(classifier(images_of(classifier)), torch.tensor([0, 1, 2]))
        loss.backward()
        for name, value in factors.items():
            assert value.grad is not None, name
            if name.endswith(second):  # none is trained for nothing
                assert value.grad.any(), name
        move(factors, second)
        adapted_BK = logits_of(classifier)
        assert (adapted_BK - zero_shot_BK).abs().max() > 0.1
        check_updates(method, classifier, before, adapted_BK)


def move(factors: dict[str, nn.Parameter], second: str) -> None:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in factors.items():
            if name.endswith(second):
                value.copy_(torch.randn(value.shape, generator=draw) / 8)


def check_updates(
    method: Adapter, classifier: Classifier, before: dict[str, Tensor], adapted_BK: Tensor
) -> None:
    """Check the names in state dicts, the recorded updates, and the merged model."""
    model = classifier.backbone.model
    saved, state = model.state_dict(), classifier.state_dict()
    for name, value in before.items():
        assert torch.equal(saved[name], value), name
    expected = {name: value.double() for name, value in before.items()}
    for update in method.low_rank_updates(classifier):
        change = update.scale * state[update.up].double() @ state[update.down].double()
        expected[update.tensor][slice(*update.rows)] += change
    method.merge(classifier)
    merged = model.state_dict()
    assert list(merged) == list(before)
    changed = [name for name, value in merged.items() if not torch.equal(value, before[name])]
    assert changed
    for name, value in merged.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_of(classifier), adapted_BK, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "family", ["eva01", pytest.param("siglip", marks=SLOW), pytest.param("bert", marks=SLOW)]
)
def test_dropout_and_gradients_are_the_same_in_every_memory_mode(family: str) -> None:
    found = []
    for memory in MEMORY_MODES:
        classifier = classifier_of(family)
        classifier.backbone.memory = memory
        factors = ClipLoRA(dropout=0.25)(classifier)
        move(factors, "up")
        logits_BK = classifier(images_of(classifier))
        F.cross_entropy(logits_BK, torch.tensor([0, 1, 2])).backward()
        found.append((logits_BK.detach(), [value.grad for value in factors.values()]))
    expected_BK, expected = found[0]
    for other_BK, grads in found[1:]:
        torch.testing.assert_close(other_BK, expected_BK)
        torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("family", WITHOUT_ATTENTION)
def test_towers_without_attention_are_refused_with_a_way_out(family: str) -> None:
    for encoder in ("vision", "both"):
        with pytest.raises(InputError, match=r"no attention in its blocks.*adapter\.encoder=text"):
            ClipLoRA(encoder=encoder)(classifier_of(family))


def test_blocks_without_attention_are_refused_by_number() -> None:
    classifier = classifier_of("fastvit_s0")  # attention is in the last of four stages
    with pytest.raises(InputError, match=r"position=bottom: .* are 4, 5 of 0 to 5: take last-2"):
        ClipLoRA(encoder="vision", position="bottom")(classifier)
    assert len(ClipLoRA(encoder="vision", position="last-1")(classifier)) == 2 * 3


@pytest.mark.parametrize("family", ["eva02_b", "siglip", "bert"])
def test_updates_that_are_there_already_are_refused(family: str) -> None:
    classifier = classifier_of(family)
    ClipLoRA()(classifier)
    for tower in TOWERS:
        with pytest.raises(InputError, match=f"{tower} encoder .* has it already"):
            ClipLoRA(encoder=tower)(classifier)
