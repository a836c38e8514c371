"""Zero-shot accuracy on the real digits; the rest of the pre-training does not read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from .pack import MEAN, STD
from .render import DIGIT_NAMES

DIGITS = Path(__file__).resolve().parents[2] / "so_clip" / "assets" / "digits.npz"


def pixels_to_input(images_BHWC: torch.Tensor) -> torch.Tensor:
    """Turn uint8 pictures into the model's normalised input images_BCHW."""
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
    return (images_BCHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def read_digits(part: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images_NHWC (uint8, enlarged as CLIP's test transform does) and labels_N."""
    with np.load(DIGITS) as arrays:
        chosen = arrays[part]
        images_NHW, labels_N = arrays["images_NHW"][chosen], arrays["labels_N"][chosen]
    enlarged = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        for image in images_NHW
    ]
    images_NHWC = torch.from_numpy(np.stack(enlarged))[..., None].expand(-1, -1, -1, 3)
    return images_NHWC, torch.from_numpy(labels_N.astype(np.int64))


@torch.no_grad()
def accuracy_percent(model: CLIP, part: str, template: str = "a photo of a {}.") -> float:
    """Return the zero-shot accuracy on one part of the digits: train, val or test."""
    images_NHWC, labels_N = read_digits(part, model.visual.image_size[0])
    tokens_KL = SimpleTokenizer(context_length=model.context_length)(
        [template.format(name) for name in DIGIT_NAMES]
    )
    class_KD = model.encode_text(tokens_KL, normalize=True)
    image_ND = model.encode_image(pixels_to_input(images_NHWC), normalize=True)
    return 100.0 * (image_ND @ class_KD.T).argmax(1).eq(labels_N).float().mean().item()
