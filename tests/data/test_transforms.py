"""Training crops and the test transform equal those of PIL and torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data.images import to_tensor
from so_clip.data.transforms import LONGEST, TRIES, Crop, RandomResizedCrop, TestPixels
from so_clip.errors import InputError
from tests.oracles import crop_oracle

MEAN_LIMIT = 2  # mean absolute difference of pixels from 0 to 255: the project's promise
sides = st.one_of(st.integers(1, 8), st.integers(1, 400), st.sampled_from([1, 2, 3, 223, 224, 225]))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(width: int, height: int, seed: int) -> Image.Image:
    """Noise over a ramp: the hardest pixels for a resampler, and large areas too."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    noise = rng.integers(0, 256, (height, width, 3))
    return Image.fromarray(np.where(rng.random() < 0.5, noise, ramp).astype(np.uint8))


def _difference(square, expected_HWC: np.ndarray) -> float:
    pixels_HWC = np.asarray(square, dtype=np.float64)
    assert pixels_HWC.shape == expected_HWC.shape
    return float(np.abs(pixels_HWC - expected_HWC).mean())


def test_test_transform_is_clips_on_real_images(eurosat_images):
    for image_size in (224, 64, 48, 336):
        for file in eurosat_images[::4]:
            image = Image.open(file).convert("RGB")
            square = TestPixels(image_size).square(image)
            expected = crop_oracle.clip_test_pixels_HWC(image, image_size)
            assert _difference(square, expected) == 0


@settings(max_examples=150)
@given(sides, sides, st.sampled_from([2, 7, 32, 63, 224]), st.integers(0, 9))
def test_test_transform_is_clips_at_any_size(width, height, image_size, seed):
    image = _noise(width, height, seed)
    square = TestPixels(image_size).square(image)
    assert square.mode == "RGB"
    expected = crop_oracle.clip_test_pixels_HWC(image, image_size)
    extreme = max(width, height) > LONGEST * min(width, height)
    assert _difference(square, expected) <= (MEAN_LIMIT if extreme else 0)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (30_000, 2), (1, 1)])
def test_test_transform_takes_extreme_shapes_in_little_memory(size):
    # Resized whole, 1 x 60000 would be 3 billion pixels.
    square = TestPixels(224).square(Image.new("RGB", size, (10, 200, 30)))
    assert square.size == (224, 224)
    assert np.unique(np.asarray(square).reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]


def test_training_crops_are_pils_on_real_images(eurosat_images):
    crop = RandomResizedCrop(224)
    pictures = [Image.open(file).convert("RGB") for file in eurosat_images]
    crops = crop.draw([(image.height, image.width) for image in pictures], _generator(1))
    tensors = [to_tensor(image) for image in pictures]
    images_BCHW = crop(tensors, _generator(1))
    assert images_BCHW.dtype == torch.uint8
    assert images_BCHW.shape == (len(pictures), 3, 224, 224)
    assert {crop.flip for crop in crops} == {True, False}
    for image, box, pixels_CHW in zip(pictures, crops, images_BCHW, strict=True):
        expected = crop_oracle.training_pixels_HWC(image, box, 224)
        assert _difference(pixels_CHW.permute(1, 2, 0), expected) <= MEAN_LIMIT


@settings(max_examples=100)
@given(sides, sides, st.sampled_from([2, 7, 63, 224]), st.integers(0, 2**31))
def test_training_crops_are_pils_at_any_size(width, height, image_size, seed):
    image = _noise(width, height, seed)
    transform = RandomResizedCrop(image_size)
    [box] = transform.draw([(height, width)], _generator(seed))
    expected = crop_oracle.training_pixels_HWC(image, box, image_size)
    pixels_CHW = transform.apply(to_tensor(image), box)
    assert _difference(pixels_CHW.permute(1, 2, 0), expected) <= MEAN_LIMIT
    # CUDA has no uint8 resampler: torchvision goes through float there, as here.
    as_on_cuda_CHW = transform.apply(to_tensor(image).float(), box).round().clamp(0, 255)
    assert _difference(as_on_cuda_CHW.permute(1, 2, 0), expected) <= MEAN_LIMIT


@settings(max_examples=300)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    st.integers(0, 2**31),
)
def test_boxes_follow_torchvisions_rule_and_fit(height, width, scale, seed):
    transform = RandomResizedCrop(8, scale)
    [crop] = transform.draw([(height, width)], _generator(seed))
    tries = torch.rand(1, TRIES, 4, generator=_generator(seed), dtype=torch.float64)[0].tolist()
    assert crop[:4] == crop_oracle.box_from_uniforms(height, width, scale, tries)
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 500), (50, 400)])
def test_boxes_are_distributed_like_torchvisions(height, width):
    count = 4000
    ours = RandomResizedCrop(8).draw([(height, width)] * count, _generator(5))
    boxes = np.array([crop[:4] for crop in ours])
    theirs = crop_oracle.torchvision_boxes(height, width, (0.08, 1.0), count, seed=6)
    for column in range(4):
        # Two-sample Kolmogorov-Smirnov statistic; 0.044 is its 0.1% point for 2 x 4000 draws.
        values = np.unique(np.concatenate([boxes[:, column], theirs[:, column]]))
        ours_cdf = np.searchsorted(np.sort(boxes[:, column]), values, side="right") / count
        theirs_cdf = np.searchsorted(np.sort(theirs[:, column]), values, side="right") / count
        assert np.abs(ours_cdf - theirs_cdf).max() < 0.044
    assert abs(np.mean([crop.flip for crop in ours]) - 0.5) < 0.04


def test_draws_come_from_the_generator_alone_and_do_not_depend_on_sizes():
    state = torch.random.get_rng_state()
    transform, small, large = RandomResizedCrop(16), _generator(3), _generator(3)
    first = transform.draw([(64, 64)] * 5, small)
    transform.draw([(1, 900)] * 5, large)
    assert torch.equal(small.get_state(), large.get_state())
    assert transform.draw([(64, 64)] * 5, _generator(3)) == first
    assert transform.draw([(64, 64)] * 5, small) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_flip_and_scale_can_be_turned_off():
    transform = RandomResizedCrop(16, scale=(1.0, 1.0), flip=False)
    crops = transform.draw([(64, 64)] * 50, _generator(0))
    # An area of 1 fits a square image only at ratio 1, so the whole image is what is left.
    assert set(crops) == {Crop(0, 0, 64, 64, False)}


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.4), (0.5, 1.1), (-1, 1)])
def test_bad_scale_is_refused(scale):
    with pytest.raises(InputError, match="scale="):
        RandomResizedCrop(224, scale)


def test_bad_image_size_is_refused():
    with pytest.raises(InputError, match="image_size=1"):
        RandomResizedCrop(1)
    with pytest.raises(InputError, match="image_size=0"):
        TestPixels(0)
