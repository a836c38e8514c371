"""CLIP's image pipelines as the reference code runs them: PIL images through torchvision."""

import math

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

BICUBIC = transforms.InterpolationMode.BICUBIC


def clip_test_pixels_HWC(image: Image.Image, image_size: int) -> np.ndarray:
    reference = transforms.Compose(
        [transforms.Resize(image_size, interpolation=BICUBIC), transforms.CenterCrop(image_size)]
    )
    return np.asarray(reference(image.convert("RGB")), dtype=np.float64)


def training_pixels_HWC(image: Image.Image, crop, image_size: int) -> np.ndarray:
    """Cut, resize and mirror with nothing but PIL."""
    right, bottom = crop.left + crop.width, crop.top + crop.height
    cut = image.crop((crop.left, crop.top, right, bottom))
    square = cut.resize((image_size, image_size), Image.Resampling.BICUBIC)
    if crop.flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square, dtype=np.float64)


def torchvision_boxes(height: int, width: int, scale, count: int, seed: int) -> np.ndarray:
    """`count` boxes (top, left, height, width) as torchvision draws them, on the global RNG."""
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw = transforms.RandomResizedCrop.get_params
        boxes = [draw(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    return np.array(boxes)


def box_from_uniforms(height: int, width: int, scale, tries) -> tuple[int, int, int, int]:
    """torchvision's acceptance rule, fed with given uniform numbers instead of drawn ones."""
    area = height * width
    log_ratio = (math.log(3 / 4), math.log(4 / 3))
    for share, ratio, vertical, horizontal in tries:
        target_area = area * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(log_ratio[0] + ratio * (log_ratio[1] - log_ratio[0]))
        w = int(round(math.sqrt(target_area * aspect)))  # noqa: RUF046
        h = int(round(math.sqrt(target_area / aspect)))  # noqa: RUF046
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(vertical * (height - h + 1))
            left = math.floor(horizontal * (width - w + 1))
            return top, left, h, w
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w = width
        h = round(w / (3 / 4))
    elif in_ratio > 4 / 3:
        h = height
        w = round(h * (4 / 3))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def resized_in_float64(pixels_HWC: np.ndarray, image_size: int) -> np.ndarray:
    """Resize columns, then rows, with Keys' cubic (a = -1/2) stretched by the reduction.

    Between the passes values are cut to [0, 255] and not rounded.
    """
    narrow_HSC = np.einsum(
        "sw,hwc->hsc", cubic_weights(pixels_HWC.shape[1], image_size), pixels_HWC
    )
    rows_SH = cubic_weights(pixels_HWC.shape[0], image_size)
    return np.einsum("sh,htc->stc", rows_SH, narrow_HSC.clip(0, 255)).clip(0, 255)


def cubic_weights(length: int, image_size: int) -> np.ndarray:
    """Return the weight [image_size, length] of each pixel, one at a time."""
    scale = length / image_size
    stretch = max(scale, 1.0)
    weights_SL = np.zeros((image_size, length))
    for s in range(image_size):
        center = scale * (s + 0.5)
        for pixel in range(length):
            x = abs(pixel + 0.5 - center)
            # The window is the support of the filter, rounded to whole pixels.
            if int(max(center - 2 * stretch + 0.5, 0)) <= pixel < int(center + 2 * stretch + 0.5):
                x /= stretch
                near = 1.5 * x**3 - 2.5 * x**2 + 1
                far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
                weights_SL[s, pixel] = near if x < 1 else far if x < 2 else 0
    return weights_SL / weights_SL.sum(axis=1, keepdims=True)
