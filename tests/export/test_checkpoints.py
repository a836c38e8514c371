"""Checkpoints that open_clip and OpenAI's layout read, with the logits of the adapted model."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import load_file
from torch import Tensor, nn

from so_clip.clip.load import load_backbone
from so_clip.clip.loading.checkpoint import read_weights
from so_clip.errors import InputError
from so_clip.export.sizes import check_fits
from so_clip.export.targets import Plain, open_clip_content, plain_state
from tests.helpers.exports import (
    ARCHITECTURE,
    OPENAI_SIZES,
    RESNET,
    Adapted,
    adapted,
    adapted_so,
    pixels_BCHW,
    snippet_logits,
    tokens_KL,
)
from tests.helpers.small_models import CONFIG


@pytest.fixture(autouse=True)
def _architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small models known to open_clip, as any architecture is."""
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(factory, name, getattr(factory, name).copy())
    for name, config in {
        ARCHITECTURE: CONFIG,
        f"{ARCHITECTURE}-quickgelu": CONFIG | {"quick_gelu": True},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")


def logits_BK(model: nn.Module, folder: Path) -> Tensor:
    with torch.no_grad():
        image_BD = model.encode_image(pixels_BCHW(), normalize=True)
        class_KD = model.encode_text(tokens_KL(folder), normalize=True)
        return model.logit_scale.exp() * image_BD @ class_KD.T


def assert_equal(found_BK: Tensor, case: Adapted) -> None:
    assert (case.logits_BK - case.zero_shot_BK).abs().max() > 0.05
    torch.testing.assert_close(found_BK, case.logits_BK, rtol=1e-5, atol=1e-4)


SLOW = [pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".pt", ".pth", ".bin")]


@pytest.mark.parametrize("suffix", [".safetensors", *SLOW])
def test_open_clip_loads_a_checkpoint_by_its_suffix(suffix: str, tmp_path: Path) -> None:
    case, file = adapted_so(), f"model{suffix}"
    case.write(tmp_path / "out", "open_clip", file)
    model = open_clip.create_model(ARCHITECTURE, pretrained=str(tmp_path / "out" / file)).eval()
    assert_equal(logits_BK(model, tmp_path / "out"), case)


def test_a_base_from_the_hub_or_a_folder_brings_its_configuration(tmp_path: Path) -> None:
    # open_clip ignores `pretrained` if the name is such a place.
    backbone = adapted_so().restored.classifier.backbone
    state = plain_state(backbone)
    content = open_clip_content(Plain(backbone, state, "hf-hub:some/model", None), "m.safetensors")
    content.write(tmp_path)
    assert 'add_model_config("so_clip_model.json")' in content.loading.snippet
    open_clip.add_model_config(tmp_path / "so_clip_model.json")
    model = open_clip.create_model("so_clip_model", pretrained=str(tmp_path / "m.safetensors"))
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip_lora", "dora", "wise_ft", "coop", "two_stage"])
def test_the_weights_of_every_kind_of_method_are_merged(method: str, tmp_path: Path) -> None:
    case = adapted(method)
    case.write(tmp_path / "out", "open_clip", "model.safetensors")
    model = open_clip.create_model(
        ARCHITECTURE, pretrained=str(tmp_path / "out" / "model.safetensors")
    ).eval()
    with torch.no_grad():
        image_BD = model.encode_image(pixels_BCHW(), normalize=True)
    classes = load_file(tmp_path / "out" / "classifier.safetensors")
    assert_equal(image_BD @ classes["weight"].T + classes["bias"], case)


@pytest.mark.slow
def test_quick_gelu_is_part_of_the_architecture_that_the_card_names(tmp_path: Path) -> None:
    case = adapted("so", quick_gelu=True)
    export = case.write(tmp_path / "out", "open_clip", "model.pt")
    assert f'"{ARCHITECTURE}-quickgelu"' in export.content.loading.snippet
    model = open_clip.create_model(
        f"{ARCHITECTURE}-quickgelu", pretrained=str(tmp_path / "out" / "model.pt")
    ).eval()
    assert_equal(logits_BK(model, tmp_path / "out"), case)


@pytest.mark.slow
def test_open_clip_loads_a_resnet(tmp_path: Path) -> None:
    (tmp_path / "small-ResNet.json").write_text(json.dumps(RESNET))
    open_clip.add_model_config(tmp_path / "small-ResNet.json")
    case = adapted("bitfit", config=RESNET)
    case.write(tmp_path / "out", "open_clip", "model.safetensors")
    file = str(tmp_path / "out" / "model.safetensors")
    model = open_clip.create_model("small-ResNet", pretrained=file).eval()
    assert_equal(logits_BK(model, tmp_path / "out"), case)


def test_openais_layout_is_read_by_open_clip_and_by_so_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's reader rounds to float16, as OpenAI's does; ours keeps float32."""
    from open_clip.model import build_model_from_openai_state_dict, convert_weights_to_lp

    case = adapted("clip_lora", config=OPENAI_SIZES, quick_gelu=True)
    case.write(tmp_path / "out", "openai", "model.pt")
    file = tmp_path / "out" / "model.pt"
    state = torch.load(file, weights_only=True)
    assert state["input_resolution"].item() == 32
    assert (state["context_length"].item(), state["vocab_size"].item()) == (77, 49408)

    weights = read_weights(file)
    assert weights.quick_gelu is True
    own = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32).float()
    own.load_state_dict(weights.state_dict)
    assert_equal(logits_BK(own, tmp_path / "out"), case)

    loaded = open_clip.load_openai_model(str(file), precision="fp32", device="cpu")
    convert_weights_to_lp(own, dtype=torch.float16)
    expected_BK = logits_BK(own.float(), tmp_path / "out")
    torch.testing.assert_close(logits_BK(loaded, tmp_path / "out"), expected_BK)
    snippet_BK = snippet_logits(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(snippet_BK, case.logits_BK[:1], rtol=0, atol=0.5)


@pytest.mark.slow
def test_so_clip_adapts_an_exported_checkpoint_further(tmp_path: Path) -> None:
    case = adapted("so", config=OPENAI_SIZES, quick_gelu=True)
    (tmp_path / "small-OpenAI.json").write_text(json.dumps(OPENAI_SIZES))
    open_clip.add_model_config(tmp_path / "small-OpenAI.json")
    case.write(tmp_path / "out", "openai", "model.pt")
    backbone = load_backbone("small-OpenAI", checkpoint=tmp_path / "out" / "model.pt")
    found_BK = logits_BK(backbone.model, tmp_path / "out")
    assert_equal(found_BK, case)


@pytest.mark.parametrize(
    ("config", "quick_gelu", "reason"),
    [
        (OPENAI_SIZES, False, "has the activation GELU, and OpenAI's layout implies QuickGELU"),
        (CONFIG, True, "has attention heads in vision_cfg that are not 64 wide"),
    ],
)
def test_what_openais_layout_cannot_say_is_refused(
    config: dict[str, object], quick_gelu: bool, reason: str
) -> None:
    with pytest.raises(InputError, match=f"--to openai: {ARCHITECTURE} {reason}.* --to open_clip"):
        check_fits(config | {"quick_gelu": quick_gelu}, "openai", ARCHITECTURE)
