"""Methods on every family of open_clip's models: they learn and change only what they should."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from so_clip import adapters
from so_clip.build import build_optimizer
from so_clip.clip.roles import GROUPS
from so_clip.errors import InputError
from so_clip.optim.sampled_gradient import SampledGradient
from tests.helpers.battery_parts import (
    TrainedMethod,
    images_of,
    logits_of,
    model_of,
    settings_of,
    tensors_of,
)
from tests.helpers.saved_adapters import plain_model, save_trained
from tests.helpers.small_families import FAMILIES, family_cases

STEPS = 12
# All steps see the same images, so that the loss falls in a few.
_SAME = ("augment.scale=[1.0,1.0]",)
METHODS = {
    "so": _SAME,
    "adamw": _SAME,
    "clip_lora": (*_SAME, "optimizer.lr=5e-2", "adapter.rank=8", "adapter.dropout=0.05"),
    "lora": _SAME,
    "two_stage": _SAME,
}
# Families on which a method cannot work, and the reason that it gives.
_NO_ATTENTION = r"the vision encoder of small \S+ has no attention in its blocks, .*encoder=text"
_CONVOLUTIONS = r"mlp\.fc1\.weight is not the weight of a linear layer.* adapter\.encoder="
REFUSED: dict[tuple[str, str], str] = {
    ("clip_lora", "resnet"): _NO_ATTENTION,
    ("clip_lora", "convnext"): _NO_ATTENTION,
    ("clip_lora", "convnext_mlp"): _NO_ATTENTION,
    ("lora", "resnet"): r"the vision encoder of small RN50 has none of them.*encoder=text",
    ("lora", "fastvit_s0"): _CONVOLUTIONS,
    ("lora", "fastvit_s3"): _CONVOLUTIONS,
}

_SLOW = pytest.mark.slow
_FAST = {("so", "siglip"), ("clip_lora", "eva02_b"), ("two_stage", "convnext")}
# SO meets every family. The others take turns, because all pairs together take ten minutes.
CASES = [
    pytest.param(method, family, marks=[] if (method, family) in _FAST else _SLOW)
    for number, family in enumerate(FAMILIES)
    for place, method in enumerate(METHODS)
    if method == "so" or (method, family) in _FAST or (number + place) % 4 == 0
    if (method, family) not in REFUSED
]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("method", "family"), CASES)
def test_it_learns_changes_the_intended_tensors_and_is_saved(
    method: str, family: str, tmp_path: Path
) -> None:
    done = TrainedMethod(method, family, STEPS, METHODS[method])
    losses = done.adaptation.history.losses
    assert len(losses) == STEPS
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    check_changes(done, method)
    check_saved(done, tmp_path / "adapter.safetensors")


def check_changes(done: TrainedMethod, method: str) -> None:
    """All other tensors are equal bit for bit, also the statistics of batch normalisation."""
    before = done.tensors_before
    changed = {
        name.removeprefix("backbone.model.")
        for name, value in tensors_of(done.model).items()
        if name not in before or not torch.equal(value, before[name])
    }
    parts = plain_model(done.family).classifier.backbone.role_map()
    if method in ("so", "adamw"):
        matrices = {part.name for part in parts if part.roles & {*GROUPS["matrices"]}}
        assert changed == matrices
    elif method == "two_stage":
        norms = {part.name for part in parts if "norm" in part.roles and part.block is not None}
        assert changed == norms | {"head.weight"}
    else:
        added = re.compile(r"\.updates\.[qkv]\.(down|up)$|\.lora_[AB]\.default\.weight$")
        assert [name for name in changed if not added.search(name)] == []
        assert {name.startswith("visual.") for name in changed} == {True, False}


def check_saved(done: TrainedMethod, file: Path) -> None:
    """The adapter file gives the logits of the run, and is removed without a trace.

    CLIP-LoRA in a FastViT differs by rounding: its inputs have another layout in memory.
    """
    adapter = save_trained(done, file)
    model = plain_model(done.family)
    zero_shot_BK = logits_of(model)
    adapters.apply(model.classifier, adapter)
    torch.testing.assert_close(logits_of(model), done.logits_BK, rtol=0, atol=1e-4)
    adapters.remove(model.classifier)
    assert torch.equal(logits_of(model), zero_shot_BK)


@_SLOW
@pytest.mark.parametrize(("method", "family"), sorted(REFUSED))
def test_a_refusal_names_the_reason(method: str, family: str) -> None:
    with pytest.raises(InputError, match=REFUSED[method, family]):
        model_of(settings_of(method, STEPS), family)


@pytest.mark.parametrize("family", family_cases(("siglip", "resnet")))
def test_sampled_gradients_are_entries_of_the_dense_ones(family: str) -> None:
    sampled, dense = (_gradients(family, choice) for choice in ("true", "false"))
    assert {*sampled} == {*dense}
    found = [name for name, grad in sampled.items() if isinstance(grad, SampledGradient)]
    assert len(found) > len(sampled) / 2
    assert {name.startswith("visual.") for name in found} == {True, False}
    for name in found:
        entries_M = dense[name].take(sampled[name].support_M)
        tolerance = 1e-4 * dense[name].abs().max().item() + 1e-7
        torch.testing.assert_close(
            sampled[name].values_M,
            entries_M,
            rtol=0,
            atol=tolerance,
            msg=lambda message, name=name: f"{name}: {message}",
        )


def _gradients(family: str, sampled: str) -> dict[str, Any]:
    choice = f"optimizer.sampled_gradients={sampled}"
    settings = settings_of("so", STEPS, choice, "optimizer.density_ratio=0.005")
    model = model_of(settings, family)
    build_optimizer(settings.method.optimizer, model)
    images, labels = images_of(0, max(40, model.classifier.backbone.image_size))
    size = model.classifier.backbone.image_size
    images_BCHW = torch.stack(images)[:, :, :size, :size].contiguous()
    F.cross_entropy(model.classifier(images_BCHW), torch.tensor(labels)).backward()
    return {name: value.grad for name, value in model.parameters.items()}
