"""SigLIP as a folder for transformers: the embeddings, pixels and names of SiglipModel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.clip.loading import siglip_layout
from so_clip.clip.loading.checkpoint import load_weights
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from so_clip.export.sizes import check_fits
from so_clip.export.targets import Plain, plain_state, transformers_content
from tests.helpers.local_tokenizers import local_tokenizer
from tests.helpers.small_families import FAMILIES, WORDS, small_backbone, small_images

transformers = pytest.importorskip("transformers")
SIGLIPS = ("siglip", pytest.param("siglip2", marks=pytest.mark.slow), "siglip_i18n")


def backbone_of(family: str) -> Backbone:
    backbone = small_backbone(family)
    backbone.pixels = TestPixels(backbone.image_size, "squash", "bicubic")
    return backbone


def export(backbone: Backbone, folder: Path) -> None:
    plain = Plain(backbone, plain_state(backbone), "ViT-B-16-SigLIP", None)
    content = transformers_content(plain)
    folder.mkdir(exist_ok=True)
    content.write(folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*content.names}


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("family", SIGLIPS)
def test_transformers_gives_the_embeddings_and_logits_of_the_backbone(family, tmp_path):
    backbone = backbone_of(family)
    backbone.logit_scale = 20.0
    export(backbone, tmp_path)
    model: Any = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    images_BCHW = small_images(backbone, 3)
    tokens_KL = torch.randint(2, WORDS, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels_BCHW = (images_BCHW / 255 - backbone.mean) / backbone.std
        outputs = model(input_ids=tokens_KL, pixel_values=pixels_BCHW)
        image_BD, text_KD = backbone.encode_image(images_BCHW), backbone.encode_text(tokens_KL)
    torch.testing.assert_close(unit(outputs.image_embeds), image_BD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unit(outputs.text_embeds), text_KD, rtol=1e-5, atol=1e-5)
    expected_BK = 20 * image_BD @ text_KD.T + backbone.model.logit_bias
    torch.testing.assert_close(outputs.logits_per_image, expected_BK, rtol=1e-4, atol=1e-4)


def test_the_processor_gives_the_pixels_of_the_backbone(tmp_path):
    backbone = backbone_of("siglip")
    export(backbone, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    noise_HWC = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    image = Image.fromarray(noise_HWC).resize((140, 90), Image.Resampling.BICUBIC)
    found_CHW = processor(images=image, return_tensors="pt")["pixel_values"][0]
    pixels_CHW = torch.from_numpy(np.array(backbone.pixels.square(image))).permute(2, 0, 1)
    expected_CHW = (pixels_CHW / 255 - backbone.mean) / backbone.std
    assert (found_CHW - expected_CHW).abs().max() <= 2 / 255 / backbone.std.min()


def test_the_folder_is_a_checkpoint_of_the_same_architecture():
    backbone = backbone_of("siglip")
    state = backbone.model.state_dict()
    converted = siglip_layout.to_hugging_face(state)
    back = siglip_layout.from_hugging_face(converted)
    assert {*back} == {*state}
    assert all(torch.equal(back[name].reshape(value.shape), value) for name, value in state.items())
    other = backbone_of("siglip").model
    for value in other.parameters():
        value.data.zero_()
    load_weights(other, {f"model.{name}": value for name, value in converted.items()}, "a file")
    assert torch.equal(
        other.state_dict()["visual.trunk.pos_embed"], state["visual.trunk.pos_embed"]
    )


def test_without_a_tokenizer_of_transformers_the_card_says_so(tmp_path):
    backbone = backbone_of("siglip")
    content = transformers_content(Plain(backbone, plain_state(backbone), "ViT-B-16-SigLIP", None))
    assert "no tokenizer" in content.loading.notes[0]
    assert [*content.names] == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_pixels_that_siglips_processor_cannot_make_are_refused(tmp_path):
    backbone = backbone_of("siglip")
    backbone.pixels = TestPixels(32, "shortest", "bicubic")
    with pytest.raises(InputError, match=r"resize_mode=shortest.*--to open_clip"):
        export(backbone, tmp_path / "never")


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("family", [*FAMILIES])
def test_every_other_library_takes_a_model_or_refuses_it_with_the_way_out(family):
    backbone = small_backbone(family)
    architecture = json.loads(json.dumps(backbone.architecture, default=str))
    taken = {"transformers": {"vit", "siglip", "siglip2", "siglip_i18n"}, "peft": {"vit"}}
    for target in ("openai", "transformers", "peft"):
        if family in taken.get(target, ()):
            check_fits(architecture, target, family)
        else:
            with pytest.raises(InputError, match=rf"--to {target}: {family} has .*--to open_clip"):
                check_fits(architecture, target, family)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_a_tokenizer_of_transformers_comes_with_the_folder(kind, tmp_path):
    backbone = backbone_of(kind)
    backbone._tokenizer = local_tokenizer(kind, tmp_path, context_length=40)
    export(backbone, tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "SiglipProcessor"
    texts = ["a photo of a river", "a small drawing of a cat"]
    found_KL = processor(text=texts, padding="max_length", max_length=40, return_tensors="pt")
    assert torch.equal(found_KL["input_ids"], backbone.tokenize(texts))
