import hashlib
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.blocks import MEMORY_MODES
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture import build_model
from so_clip.clip.loading.checkpoint import load_weights
from so_clip.clip.loading.hub import fetch_pretrained
from so_clip.config.compose import choices
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from tests.clip.loading.test_architecture import activations
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.small_models import (
    CONFIG,
    MEAN,
    STD,
    save_as_openai_does,
    small_backbone,
    small_clip,
)

PROMPTS = ["a photo of a cat.", "a photo of a very small dog.", "!", "x " * 70]


def pictures(size: int, count: int = 3) -> list[Image.Image]:
    draws = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in draws]


def uint8(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def logits_as_open_clip(model: Any, tokenizer: Any, images: list[Image.Image]) -> Tensor:
    """open_clip's own path: PIL through its transform, features, normalisation, product."""
    transform = image_transform(images[0].size[0], is_train=False, mean=MEAN, std=STD)
    with torch.no_grad():
        image_BD = model.encode_image(torch.stack([transform(image) for image in images]))
        class_KD = model.encode_text(tokenizer(PROMPTS))
    return F.normalize(image_BD, dim=-1) @ F.normalize(class_KD, dim=-1).T


def logits(backbone: Backbone, images: list[Image.Image]) -> Tensor:
    with torch.no_grad():
        image_BD = backbone.encode_image(uint8(images))
        return image_BD @ backbone.encode_text(backbone.tokenize(PROMPTS)).T


@pytest.fixture(scope="module")
def vit_b32() -> Backbone:
    return load_backbone("ViT-B-32-quickgelu", seed=3)


@pytest.mark.slow
def test_logits_are_those_of_open_clip_on_vit_b32(vit_b32: Backbone) -> None:
    backbone = Backbone(vit_b32.model, open_clip.get_tokenizer("ViT-B-32"), MEAN, STD).eval()
    images = pictures(224)
    expected = logits_as_open_clip(vit_b32.model, open_clip.get_tokenizer("ViT-B-32"), images)
    torch.testing.assert_close(logits(backbone, images), expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_random_vit_b32(vit_b32: Backbone) -> None:
    assert vit_b32.image_size == 224
    assert vit_b32.context_length == 77
    assert vit_b32.logit_scale == 100
    assert vit_b32.block_count("vision") == vit_b32.block_count("text") == 12
    assert vit_b32.description == "ViT-B-32-quickgelu (random weights, seed 3, QuickGELU)"
    assert activations(vit_b32.model) == {"QuickGELU"}
    assert not vit_b32.training
    assert not any(parameter.requires_grad for parameter in vit_b32.parameters())


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_logits_are_those_of_open_clip_on_a_small_model(quick_gelu: bool) -> None:
    backbone = small_backbone(quick_gelu)
    images = pictures(32, count=9)
    expected = logits_as_open_clip(backbone.model, open_clip.SimpleTokenizer(), images)
    torch.testing.assert_close(logits(backbone, images), expected, atol=1e-6, rtol=0)


def test_pixels_must_be_uint8() -> None:
    with pytest.raises(TypeError, match="uint8"):
        small_backbone().encode_image(torch.zeros(1, 3, 32, 32))


def test_encoding_does_not_change_the_pixels() -> None:
    images_BCHW = uint8(pictures(32))
    before = images_BCHW.clone()
    small_backbone().encode_image(images_BCHW)
    assert torch.equal(images_BCHW, before)


def test_under_autocast_embeddings_are_float32_of_unit_length() -> None:
    backbone = small_backbone()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        image_BD = backbone.encode_image(uint8(pictures(32)))
        class_KD = backbone.encode_text(backbone.tokenize(PROMPTS))
    for features in (image_BD, class_KD):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_patch_dropout_is_off() -> None:
    backbone = small_backbone(patch_dropout=0.5)
    images_BCHW = uint8(pictures(32))
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(images_BCHW), backbone.encode_image(images_BCHW))


def test_blocks_in_order() -> None:
    backbone = small_backbone()
    assert backbone.block_count("vision") == 2
    assert backbone.blocks("text")[0] is backbone.model.transformer.resblocks[0]
    custom = Backbone(open_clip.model.CustomTextCLIP(**_config()), open_clip.tokenize, MEAN, STD)
    assert custom.blocks("text")[1] is custom.model.text.transformer.resblocks[1]


def _config() -> dict[str, Any]:
    from tests.helpers.small_models import CONFIG

    return CONFIG


def test_the_blocks_of_a_resnet_are_its_bottlenecks() -> None:
    backbone = small_backbone(layers=[1, 2, 1, 1])
    assert backbone.block_count("text") == 2
    assert backbone.blocks("vision")[2] is backbone.model.visual.layer2[1]
    assert backbone.block_count("vision") == 5
    assert backbone.encode_image(uint8(pictures(32))).shape == (3, 32)


def test_models_for_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(InputError, match="32x64"):
        small_backbone(image_size=(32, 64))


def test_the_hash_depends_on_the_weights_alone() -> None:
    one, same, other = small_backbone(seed=1), small_backbone(seed=1), small_backbone(seed=2)
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
    digest = hashlib.sha256()
    for name, value in sorted(one.model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} torch.float32\n".encode())
        digest.update(value.numpy().tobytes())
    assert one.weights_sha256 == digest.hexdigest()
    with torch.no_grad():
        same.model.ln_final.bias[0] += 1
    assert one.weights_sha256 != same.weights_sha256


class TestLoading:
    """load_backbone: which weights, and which activation."""

    def test_tiny_is_embedded(self) -> None:
        state = torch.get_rng_state()
        backbone = load_backbone("tiny", "embedded")
        assert torch.equal(torch.get_rng_state(), state)
        assert backbone.image_size == 32
        assert re.match(r"tiny \(embedded weights", backbone.description)
        class_KD = backbone.encode_text(backbone.tokenize(["a photo of a three."]))
        assert class_KD.norm().item() == pytest.approx(1)
        assert backbone.encode_image(uint8(pictures(32))).shape == (3, class_KD.shape[1])

    def test_explicit_attention_changes_names_only(self) -> None:
        plain = load_backbone("tiny", "embedded")
        explicit = load_backbone("tiny", "embedded", explicit=True)
        names = {name for name, _ in explicit.model.named_parameters()}
        assert "visual.transformer.resblocks.5.attn.in_proj.weight" in names
        assert not any("in_proj_" in name for name in names)
        assert explicit.weights_sha256 == plain.weights_sha256
        assert explicit.block_count("vision") == plain.block_count("vision") == 6
        assert not any(parameter.requires_grad for parameter in explicit.parameters())
        images_BCHW, tokens_KL = uint8(pictures(32)), plain.tokenize(["a photo of a three."])
        for found, expected in (
            (explicit.encode_image(images_BCHW), plain.encode_image(images_BCHW)),
            (explicit.encode_text(tokens_KL), plain.encode_text(tokens_KL)),
        ):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        load_weights(explicit.model, load_backbone("tiny", None, seed=2).model.state_dict(), "it")
        assert explicit.weights_sha256 == load_backbone("tiny", None, seed=2).weights_sha256

    def test_tiny_from_its_own_checkpoint(self, tmp_path: Path) -> None:
        source = load_backbone("tiny", None, seed=5)
        torch.save(source.model.state_dict(), tmp_path / "mine.pt")
        backbone = load_backbone("tiny", "embedded", tmp_path / "mine.pt")
        assert backbone.weights_sha256 == source.weights_sha256
        assert str(tmp_path / "mine.pt") in backbone.description

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("tiny", "openai"), "has embedded weights only"),
            (("tinny", "embedded"), "backbone.architecture=tinny"),
            (("ViT-B-32", "embedded"), "backbone.pretrained=embedded"),
            (("tiny", "embedded", "nowhere.pt"), "nowhere.pt: there is no such checkpoint"),
        ],
    )
    def test_unknown_weights_are_refused(self, arguments: Any, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            load_backbone(*arguments)


@pytest.fixture
def small_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the small model with open_clip, plain and -quickgelu, with OpenAI weights."""
    from open_clip import factory, pretrained

    configs = {"Small": _config(), "Small-quickgelu": _config() | {"quick_gelu": True}}
    for name, config in configs.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
        tags = {"openai": {"quick_gelu": True, "mean": MEAN, "std": STD}}
        if name == "Small":
            tags["laion"] = {"mean": MEAN, "std": STD, "resize_mode": "squash"}
        for tag in tags.values():
            tag["file"] = str(tmp_path / "published.pt")
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    torch.save(small_clip(seed=7).state_dict(), tmp_path / "published.pt")
    return "Small"


@pytest.mark.parametrize(
    ("suffix", "tag", "quick_gelu"),
    [("", "openai", True), ("-quickgelu", "openai", True), ("", "laion", False)],
)
def test_published_weights_set_the_activation(
    suffix: str, tag: str, quick_gelu: bool, small_architecture: str
) -> None:
    assert fetch_pretrained(small_architecture + suffix, tag).is_file()
    backbone = load_backbone(small_architecture + suffix, tag)
    assert activations(backbone.model) == {"QuickGELU" if quick_gelu else "GELU"}
    assert ("QuickGELU" in backbone.description) is quick_gelu
    assert backbone.architecture["quick_gelu"] is quick_gelu
    assert backbone.architecture["vision_cfg"]["patch_size"] == 8
    assert torch.equal(backbone.mean.flatten(), torch.tensor(MEAN))


@pytest.mark.slow
def test_published_weights_set_the_pixels(small_architecture: str, tmp_path: Path) -> None:
    side = load_backbone(small_architecture).image_size
    squashed = TestPixels(side, "squash")
    assert load_backbone(small_architecture, "laion").pixels == squashed
    assert load_backbone(small_architecture, "openai").pixels == TestPixels(side)
    torch.save(small_clip(seed=8).state_dict(), tmp_path / "local.pt")
    assert load_backbone(small_architecture, "laion", tmp_path / "local.pt").pixels == squashed
    given = {"interpolation": "bilinear", "mean": [0.5, 0.5, 0.25]}
    backbone = load_backbone(small_architecture, "laion", preprocessing=given)
    assert backbone.pixels == TestPixels(side, "squash", "bilinear")
    assert backbone.mean.flatten().tolist() == [0.5, 0.5, 0.25]
    assert torch.equal(backbone.std.flatten(), torch.tensor(STD))


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("suffix", "tag", "kind", "quick_gelu"),
    [
        ("-quickgelu", "openai", "state_dict", True),
        ("-quickgelu", None, "state_dict", True),
        ("", None, "state_dict", False),
        ("", "laion", "state_dict", False),
        ("", None, "openai", True),
        pytest.param("", "openai", "openai", True, marks=pytest.mark.slow),
        pytest.param("", "laion", "openai", True, marks=pytest.mark.slow),
        ("", "openai", "state_dict", None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_activation_of_local_checkpoints(
    suffix: str,
    tag: str | None,
    kind: str,
    quick_gelu: bool | None,
    small_architecture: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "local.pt"
    if kind == "openai":
        save_as_openai_does(small_clip(quick_gelu=True, seed=8), file)
    else:
        torch.save(small_clip(seed=8).state_dict(), file)
    if quick_gelu is None:
        with pytest.raises(InputError, match=r"activation is unclear.*Small-quickgelu"):
            load_backbone(small_architecture + suffix, tag, file)
        return
    backbone = load_backbone(small_architecture + suffix, tag, file)
    assert activations(backbone.model) == {"QuickGELU" if quick_gelu else "GELU"}
    expected = small_clip(seed=8).ln_final.weight
    assert torch.equal(backbone.model.ln_final.weight, expected)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("name", sorted(path.stem for path in choices("backbone")))
def test_the_configured_backbones_exist(name: str) -> None:
    import yaml
    from torch._subclasses.fake_tensor import FakeTensorMode

    from so_clip.clip.backbone import square_size
    from so_clip.clip.loading.architecture import architecture_config
    from so_clip.clip.loading.hub import pretrained_config
    from so_clip.system.paths import CONF_DIR

    values = yaml.safe_load((CONF_DIR / "backbone" / f"{name}.yaml").read_text())
    assert set(values) == {"architecture", "pretrained", "checkpoint", "logit_scale"}
    quick_gelu = bool(architecture_config(values["architecture"]).get("quick_gelu"))
    if name != "tiny":
        published = pretrained_config(values["architecture"], values["pretrained"])
        assert bool(published.get("quick_gelu")) == quick_gelu
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(architecture_config(values["architecture"]), quick_gelu, seed=0)
    assert square_size(model) == {"tiny": 32, "dino_s16_128": 128}.get(name, 224)


def test_the_memory_mode_reaches_both_towers() -> None:
    sizes = []
    for memory in MEMORY_MODES:
        backbone = load_backbone("tiny", seed=1, memory=memory)
        prompts = ClassPrompts(backbone.model, backbone.tokenize(PROMPTS[:3]))
        images_BCHW = uint8(pictures(32))
        backbone.model.visual.transformer.requires_grad_(True)
        backbone.model.transformer.requires_grad_(True)
        known = [images_BCHW, *backbone.parameters(), *prompts.buffers()]
        image = kept_bytes(partial(backbone.encode_image, images_BCHW), known)
        text = kept_bytes(partial(backbone.encode_text, prompts), known)
        sizes.append((image, text))
    for (image_before, text_before), (image, text) in pairwise(sizes):
        assert image < 0.8 * image_before
        assert text < 0.8 * text_before


@pytest.mark.parametrize(
    ("text", "custom"),
    [
        ({}, False),
        ({"proj_bias": True}, False),
        ({"proj_type": "none"}, False),
        ({}, True),
        ({"proj_bias": True}, True),
        ({"proj_type": "none"}, True),
    ],
)
def test_the_size_of_embeddings_is_known_without_encoding(
    text: dict[str, Any], custom: bool
) -> None:
    width = 48 if not text.get("proj_type") else 32
    sizes = {"embed_dim": width, "text_cfg": CONFIG["text_cfg"] | text, "custom_text": custom}
    model = build_model(CONFIG | sizes, quick_gelu=False, seed=0)
    backbone = Backbone(model, open_clip.SimpleTokenizer(), MEAN, STD).eval()
    text_PD = backbone.encode_text(backbone.tokenize(["a dog"]))
    assert backbone.dimensions == text_PD.shape[1] == width


def test_tokens_become_text_if_the_tokenizer_decodes() -> None:
    backbone = small_backbone()
    (tokens_L,) = backbone.tokenize(["A photo  of a dog."]).tolist()
    assert backbone.text_of(tokens_L[1:7]) == "a photo of a dog ."
    silent = Backbone(small_clip(), lambda texts: torch.zeros(1, 77), MEAN, STD)
    assert silent.text_of([5, 7]) == "[5, 7]"
