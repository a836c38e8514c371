"""precision=fp16_authors: frozen weights, embeddings and logits in float16."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import convert_weights_to_lp
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.load import load_backbone
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.fingerprint import settings_sha256
from so_clip.methods.clip_lora import ClipLoRA
from tests.helpers.clip_lora_cases import IMAGES_BCHW, LABELS_B, PROMPTS, adapted
from tests.helpers.command import call
from tests.helpers.small_models import small_backbone
from tests.helpers.whole_runs import run

HALF, FULL = torch.float16, torch.float32


def explicit() -> Classifier:
    backbone = small_backbone()
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(list(PROMPTS)))


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in model.state_dict().items()}


def test_without_training_the_layout_is_openais() -> None:
    classifier, openai = explicit(), small_backbone().model
    convert_weights_to_lp(openai, HALF)
    classifier.backbone.use_half_weights()
    assert dtypes(classifier.backbone.model) == dtypes(openai)
    assert {HALF, FULL} == set(dtypes(openai).values())


@pytest.mark.parametrize(("position", "updated"), [("all", {0, 1}), ("top", {1})])
def test_attention_with_updates_stays_float32(position: str, updated: set[int]) -> None:
    classifier = explicit()
    factors = ClipLoRA(position="last-1" if position == "top" else position)(classifier)
    classifier.backbone.use_half_weights()
    assert {value.dtype for value in factors.values()} == {FULL}
    named = dict(classifier.backbone.model.named_parameters())
    for tower in ("visual.", ""):
        for block in range(2):
            prefix = f"{tower}transformer.resblocks.{block}."
            expected = FULL if block in updated else HALF
            for name in ("attn.in_proj.weight", "attn.in_proj.bias", "attn.out_proj.weight"):
                assert named[prefix + name].dtype == expected
            assert named[f"{prefix}mlp.c_fc.weight"].dtype == HALF
            assert named[f"{prefix}ln_1.weight"].dtype == FULL


@pytest.mark.parametrize("memory", ["fast", "balanced", "small"])
def test_logits_and_gradients_are_those_of_float32_up_to_rounding(memory: str) -> None:
    exact, half = explicit(), explicit()
    gradients: list[list[Tensor]] = []
    seen: list[Tensor] = []
    for classifier in (exact, half):
        classifier.backbone.memory = memory
        factors = adapted(classifier, dropout=0.0)
        if classifier is half:
            classifier.backbone.use_half_weights()
        with torch.autocast("cpu", HALF, enabled=classifier is half):
            logits_BK = classifier(IMAGES_BCHW)
            loss = F.cross_entropy(logits_BK.float() / 10, LABELS_B)
        (loss * 64).backward()
        seen.append(logits_BK)
        gradients.append([value.grad for value in factors.values()])
    assert [logits_BK.dtype for logits_BK in seen] == [FULL, HALF]
    assert classes_of(half).dtype == HALF
    torch.testing.assert_close(seen[1].float(), seen[0], rtol=0, atol=0.5)  # logits reach 100
    for one, other in zip(*gradients, strict=True):
        assert other.dtype == FULL
        assert float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.99


def classes_of(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        return classifier.classes()


def test_embeddings_are_normalised_in_half_precision_outside_of_autocast() -> None:
    classifier = explicit()
    classifier.backbone.use_half_weights()
    model = classifier.backbone.model
    with torch.no_grad(), torch.autocast("cpu", HALF):
        pixels_BCHW = (IMAGES_BCHW / 255 - classifier.backbone.mean) / classifier.backbone.std
        image_BD = model.encode_image(pixels_BCHW)
        found_BD = classifier.backbone.encode_image(IMAGES_BCHW)
        logits_BK = classifier(IMAGES_BCHW)
    image_BD = image_BD.half()
    torch.testing.assert_close(
        found_BD, image_BD / image_BD.norm(dim=-1, keepdim=True), rtol=0, atol=2e-3
    )
    expected_BK = 100 * found_BD @ classes_of(classifier).T
    assert torch.equal(logits_BK, expected_BK)


@pytest.mark.slow
def test_a_resnet_is_refused() -> None:
    backbone = load_backbone("RN50", seed=0, weightless=True)
    with pytest.raises(InputError, match=r"vision tower is a ModifiedResNet.*precision=fp16"):
        backbone.use_half_weights()


def test_a_device_without_half_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(F, "linear", missing)
    with pytest.raises(InputError, match=r"cannot compute in float16 on cpu.*newer torch"):
        explicit().backbone.use_half_weights()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["evaluation.precision=fp32"], "evaluation.precision=fp32 with precision=fp16_authors"),
        (["precision=fp32", "evaluation.precision=fp16_authors"], "with precision=fp32"),
        (["method=two_stage"], "method=two_stage computes with float32 weights"),
        (["method=coop"], "method=coop computes with float32 weights.*clip_lora, zero_shot"),
    ],
)
def test_choices_that_do_not_fit_are_refused(override: list[str], message: str, tmp_path) -> None:
    done = call("method=clip_lora", "precision=fp16_authors", *override, f"results_dir={tmp_path}")
    assert done.code == 2
    assert re.search(message, done.err)


def test_it_is_a_setting_of_its_own() -> None:
    found = {
        settings_sha256(from_config(compose(["method=clip_lora", f"precision={name}"])))
        for name in ("fp32", "fp16", "fp16_authors")
    }
    assert len(found) == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip_lora", "so"])
def test_a_run_stores_less_and_the_forecast_knows(method: str, tmp_path) -> None:
    weights: dict[str, float] = {}
    arguments = ["experiment=demo", f"method={method}", "device=cpu", "evaluation.batch_size=64"]
    arguments.append("schedule.max_steps=3")
    for name in ("fp16", "fp16_authors"):
        done = run(tmp_path, *arguments, f"precision={name}")
        assert done.metrics["precision"] == done.metrics["evaluation_precision"] == name
        weights[name] = done.metrics["weights_mib"]
    expected = json.loads(call("forecast", *arguments, "precision=fp16_authors", "--json").out)
    assert expected["weights_mib"] == pytest.approx(weights["fp16_authors"], rel=0.02)
    assert expected["peak_memory_mib"] == pytest.approx(done.metrics["peak_memory_mib"], rel=0.1)
    assert weights["fp16_authors"] < weights["fp16"]
