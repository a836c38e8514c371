"""CLIP's training crop, and the test transform of each model, on uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from so_clip.errors import InputError

# As in torchvision: the number of boxes that are drawn before a central crop is taken.
TRIES = 10
# A test image with at most this ratio of long to short side is resized whole, as CLIP does.
LONGEST = 64
ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


class Crop(NamedTuple):
    """One training crop, in pixels of the original image, and whether to mirror it."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class RandomResizedCrop:
    """Random area and aspect ratio, resized to a square, mirrored half of the time.

    The area is uniform in `scale` of the image's area and the aspect ratio log-uniform in
    [3/4, 4/3]. A box that does not fit is drawn again, at most 10 times; then the central box of
    an allowed ratio is taken. Pixels are resampled bicubically with antialiasing for every model,
    as in open_clip's training. The resize mode and interpolation of the model are not used.

    Args:
        image_size: side of the square, pixels.
        scale: lowest and highest share of the image's area.
        flip: mirror half of the images.

    Source: torchvision.transforms.RandomResizedCrop. Unlike here, it draws from the global
    generator.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), flip: bool = True
    ) -> None:
        check_image_size(image_size)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"scale={scale}: needs 0 < low <= high <= 1, such as (0.08, 1.0).")
        self.image_size = image_size
        self.scale = scale
        self.flip = flip

    def __call__(self, images: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Crop every image by its own random box.

        Args:
            images: uint8 tensors [3, height, width] of any sizes, all on one device.
            generator: on the CPU. Its advance depends on the number of images, not on their sizes.

        Returns:
            images_BCHW uint8 on the images' device, H = W = `image_size`.
        """
        crops = self.draw(_sizes(images), generator)
        return torch.stack(
            [self.apply(image, crop) for image, crop in zip(images, crops, strict=True)]
        )

    def draw(self, sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> list[Crop]:
        """Draw one crop for each (height, width) in `sizes`."""
        # One call for the whole batch, on the CPU, because the host needs the boxes.
        uniforms_BTU = torch.rand(len(sizes), TRIES, 4, generator=generator, dtype=torch.float64)
        flips_B = torch.rand(len(sizes), generator=generator, dtype=torch.float64) < 0.5
        return [
            self._crop(height, width, uniforms_TU, flip and self.flip)
            for (height, width), uniforms_TU, flip in zip(
                sizes, uniforms_BTU.tolist(), flips_B.tolist(), strict=True
            )
        ]

    def apply(self, image: Tensor, crop: Crop) -> Tensor:
        """Cut `crop` out of one image [3, height, width] and resize it to the square."""
        square = pixels.resized_crop(
            image,
            crop.top,
            crop.left,
            crop.height,
            crop.width,
            size=[self.image_size, self.image_size],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        return pixels.horizontal_flip(square) if crop.flip else square

    def _crop(self, height: int, width: int, uniforms_TU: list[list[float]], flip: bool) -> Crop:
        low, high = self.scale
        for area_share, log_ratio, down, right in uniforms_TU:
            area = height * width * (low + (high - low) * area_share)
            ratio = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * log_ratio)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                return Crop(top, left, h, w, flip)
        w = min(width, max(1, round(height * 4 / 3)))
        h = min(height, max(1, round(width * 4 / 3)))
        return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


def _sizes(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(image.shape[-2], image.shape[-1]) for image in images]


@dataclass(frozen=True)
class TestPixels:
    """The test transform of a model: from an RGB image of any size to the square that it takes.

    Args:
        image_size: side of the square, pixels.
        resize_mode: shortest (the shorter side becomes `image_size`; the central square is cut
            out) | squash (both sides become `image_size`) | longest (the longer side becomes
            `image_size`; the rest of the square is filled).
        interpolation: bicubic | bilinear, with antialiasing.
        fill: grey value of the rest of the square, 0 to 255.
        crop_share: the image is resized for a square of floor(image_size / crop_share) pixels,
            and its centre is cut out. 1 for models of open_clip; timm's models have other values.

    Source: `image_transform` in open_clip/transform.py of github.com/mlfoundations/open_clip;
    for its defaults, `_transform` in clip/clip.py of github.com/openai/CLIP; for `crop_share`,
    `transforms_imagenet_eval` in timm/data of github.com/huggingface/pytorch-image-models.
    """

    __test__ = False  # not a test class of pytest

    image_size: int
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill: int = 0
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        check_image_size(self.image_size)

    def record(self) -> dict[str, Any]:
        """Return what decides the pixels, as JSON values.

        `fill` counts for longest only, and `crop_share` unless it is 1.
        """
        values: dict[str, Any] = {
            "image_size": self.image_size,
            "resize_mode": self.resize_mode,
            "interpolation": self.interpolation,
        }
        values |= {"fill": self.fill} if self.resize_mode == "longest" else {}
        return values | ({} if self.crop_share == 1 else {"crop_share": self.crop_share})

    @property
    def resized_side(self) -> int:
        """The side of the square that the image is resized for, pixels."""
        return math.floor(self.image_size / self.crop_share)

    def square(self, image: Image.Image) -> Image.Image:
        """Return the square of an RGB image."""
        side = self.resized_side
        if self.resize_mode == "squash":
            resized = image.resize((side, side), _FILTERS[self.interpolation])
            first = round((side - self.image_size) / 2)
            last = first + self.image_size
            return resized.crop((first, first, last, last))
        if self.resize_mode == "shortest":
            return self._cropped(image)
        return self._padded(image)

    def _padded(self, image: Image.Image) -> Image.Image:
        """Resize the longer side, and put the image in the middle of the fill."""
        ratio = max(image.size) / self.resized_side
        # The shorter side of a thin image rounds to 0, and open_clip fails. Here it is 1.
        width, height = (max(1, round(side / ratio)) for side in image.size)
        resized = image.resize((width, height), _FILTERS[self.interpolation])
        square = Image.new("RGB", (self.image_size, self.image_size), (self.fill,) * 3)
        square.paste(resized, ((self.image_size - width) // 2, (self.image_size - height) // 2))
        return square

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side, and cut out the central square.

        An image longer than `LONGEST` times its width is resampled only inside the crop: 1 x 10000
        pixels would otherwise grow to half a gigapixel before the crop. Pillow may then swap its
        two passes, so pixels can differ from the reference by rounding.
        """
        image_size, resample = self.image_size, _FILTERS[self.interpolation]
        side, (width, height) = self.resized_side, image.size
        short, long = sorted((width, height))
        # torchvision's Resize rounds the longer side down, its CenterCrop rounds half to even.
        resized_long = side * long // short
        start, first = (round((length - image_size) / 2) for length in (resized_long, side))
        end, last = start + image_size, first + image_size
        tall = width <= height
        if long <= LONGEST * short:
            size = (side, resized_long) if tall else (resized_long, side)
            square = (first, start, last, end) if tall else (start, first, end, last)
            return image.resize(size, resample).crop(square)
        from_long, to_long = (place * long / resized_long for place in (start, end))
        from_short, to_short = (place * short / side for place in (first, last))
        box = (from_short, from_long, to_short, to_long)
        box = box if tall else (from_long, from_short, to_long, to_short)
        return image.resize((image_size, image_size), resample, box=box)


def check_image_size(image_size: int) -> None:
    """Raise InputError for an image size that is too small."""
    # torch's uint8 resampler fails an assertion at a side of 1.
    if image_size < 2:
        raise InputError(f"image_size={image_size}: must be 2 pixels or more.")
