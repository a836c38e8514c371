"""A model as open_clip 4 builds it loads, is read and is trained like one of open_clip 3."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import ExplicitAttention
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.image_tower import is_read_at_class_token
from so_clip.clip.engine.packed_text import PackedPrompts
from so_clip.clip.load import load_backbone
from so_clip.methods.clip_lora import ClipLoRA, LowRankLinear
from so_clip.methods.weights import Weights
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from tests.helpers.command import call
from tests.helpers.open_clip_4 import Attention, open_clip_4

PROMPTS = [f"a handwritten digit {name}." for name in ("zero", "one", "two")]
IMAGES_BCHW = torch.randint(
    256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS_B = torch.tensor([0, 1, 2, 1])


def tiny(memory: Memory = "fast", explicit: bool = True) -> Classifier:
    backbone = load_backbone("tiny", "embedded", memory=memory, explicit=explicit)
    return Classifier(backbone, backbone.tokenize(PROMPTS))


def logits(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        return classifier(IMAGES_BCHW)


def loss_of(classifier: Classifier) -> Tensor:
    return F.cross_entropy(classifier(IMAGES_BCHW), LABELS_B)


def test_the_embedded_clip_loads_with_the_same_names_values_and_logits() -> None:
    theirs = tiny()
    expected_BK = logits(theirs)
    with open_clip_4():
        assert isinstance(tiny(explicit=False).backbone.blocks("text")[0].attn, Attention)
        classifier = tiny()
        model = classifier.backbone.model
        assert sum(isinstance(module, ExplicitAttention) for module in model.modules()) == 10
        assert list(model.state_dict()) == list(theirs.backbone.model.state_dict())
        assert classifier.backbone.weights_sha256 == theirs.backbone.weights_sha256
        assert is_read_at_class_token(model)
        assert all(isinstance(chunk, PackedPrompts) for chunk in classifier.prompts.chunks)
        torch.testing.assert_close(logits(classifier), expected_BK, rtol=0, atol=1e-3)


@pytest.mark.parametrize("memory", ["balanced", pytest.param("small", marks=pytest.mark.slow)])
def test_gradients_are_those_of_open_clip_3(memory: Memory) -> None:
    theirs = tiny(memory)
    trained = Weights(["matrices"])(theirs)
    loss_of(theirs).backward()
    with open_clip_4():
        classifier = tiny(memory)
        own = Weights(["matrices"])(classifier)
        assert list(own) == list(trained)
        loss_of(classifier).backward()
    for name, value in own.items():
        scale = trained[name].grad.abs().max()
        torch.testing.assert_close(
            value.grad / scale, trained[name].grad / scale, rtol=0, atol=1e-4
        )


def test_it_is_trained_by_so_with_sampled_gradients() -> None:
    with open_clip_4():
        classifier = tiny()
        weights = Weights(["matrices"])(classifier)
        optimizer = SO(weights.values(), lr=3e-3, density_ratio=1e-2)
        with sampled_gradients(classifier, optimizer) as handle:
            assert len(handle.methods) == 4 * 10
            losses = []
            for _ in range(8):
                losses.append(loss_of(classifier))
                losses[-1].backward()
                optimizer.step()
                optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_it_is_trained_by_clip_lora() -> None:
    with open_clip_4():
        classifier = tiny()
        before_BK = logits(classifier)
        factors = ClipLoRA(dropout=0.0)(classifier)
        assert len(factors) == 2 * 3 * 10
        assert sum(isinstance(module, LowRankLinear) for module in classifier.modules()) == 10
        torch.testing.assert_close(logits(classifier), before_BK, rtol=0, atol=1e-3)
        optimizer = torch.optim.AdamW(factors.values(), lr=1e-2)
        losses = []
        for _ in range(8):
            losses.append(loss_of(classifier))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["so", "clip_lora"])
def test_a_run_has_the_losses_of_open_clip_3(method: str, tmp_path: Path) -> None:
    arguments = [f"method={method}", "shots=1", "schedule.max_steps=3", "evaluation.workers=0"]
    losses = []
    for version in (3, 4):
        folder = tmp_path / str(version)
        with open_clip_4() if version == 4 else nullcontext():
            done = call(*arguments, f"results_dir={folder}")
        assert done.code == 0, done.err
        (metrics,) = [json.loads(path.read_text()) for path in folder.glob("*/metrics.json")]
        losses.append([metrics["steps"], metrics["final_loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
