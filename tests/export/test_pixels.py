"""An export takes images as the model did: transforms of open_clip, and CLIPProcessor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from so_clip.clip.backbone import Backbone
from so_clip.clip.pixels import Preprocessing
from so_clip.errors import InputError
from so_clip.export.hugging_face import processor_files
from so_clip.export.targets import Plain, open_clip_content, openai_content, plain_state
from tests.helpers.exports import ARCHITECTURE
from tests.helpers.small_models import CONFIG, TOKENIZER, small_clip

HALF = (0.5, 0.5, 0.5)
CLIPS = Preprocessing()
SQUASHED = Preprocessing("squash", "bilinear", HALF, HALF)
PADDED = Preprocessing("longest", "bicubic", fill_color=200)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 75, 3), dtype=np.uint8))


def _backbone(preprocess: Preprocessing) -> Backbone:
    return Backbone(
        small_clip(),
        TOKENIZER,
        preprocess.mean,
        preprocess.std,
        description=ARCHITECTURE,
        architecture=CONFIG | {"quick_gelu": False},
        pixels=preprocess.pixels(32),
    )


def _assert_same(theirs_CHW: torch.Tensor, preprocess: Preprocessing) -> None:
    ours_CHW = torch.from_numpy(np.array(preprocess.pixels(32).square(PHOTO))).movedim(-1, 0) / 255
    mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (preprocess.mean, preprocess.std))
    assert (theirs_CHW * std_C11 + mean_C11 - ours_CHW).abs().max() <= 2 / 255


@pytest.mark.parametrize("preprocess", [CLIPS, SQUASHED, PADDED])
def test_open_clip_gets_the_pixels_from_the_card_and_from_the_hub(
    preprocess: Preprocessing, tmp_path: Path
) -> None:
    backbone = _backbone(preprocess)
    plain = Plain(backbone, plain_state(backbone), ARCHITECTURE, None)
    content = open_clip_content(plain, "model.pt")
    content.write(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["preprocess_cfg"]
    transform = image_transform_v2(PreprocessCfg(**config, size=32), is_train=False)
    _assert_same(transform(PHOTO), preprocess)
    snippets = [openai_content(plain, "model.pt").loading.snippet]
    if preprocess != CLIPS:  # else create_model_and_transforms returns the transform
        snippets.append(content.loading.snippet)
    for snippet in snippets:
        _, start, rest = snippet.partition("preprocess = open_clip.image_transform(")
        names: dict[str, Any] = {"open_clip": open_clip, "model": backbone.model}
        exec(start + rest.partition("\nmodel = model.eval()")[0], names)
        _assert_same(names["preprocess"](PHOTO), preprocess)


@pytest.mark.parametrize("preprocess", [CLIPS, SQUASHED])
def test_clip_processor_makes_the_models_pixels(preprocess: Preprocessing, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, text in processor_files(_backbone(preprocess)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path, local_files_only=True)
    found = processor(images=PHOTO, return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, 32, 32)
    _assert_same(found[0], preprocess)


def test_clip_processor_cannot_pad() -> None:
    with pytest.raises(InputError, match=r"resize_mode=longest.*--to open_clip"):
        processor_files(_backbone(PADDED))
