"""The images of tasks: crops by the task's number, test squares, memory and threads."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from so_clip.data.episodes.sampler import EpisodeDraw
from so_clip.data.examples import Example
from so_clip.data.images import to_tensor
from so_clip.data.transforms import RandomResizedCrop, TestPixels
from so_clip.meta.images import EpisodeImages, KeptPixels, crop_seed

CPU = torch.device("cpu")
CROP = RandomResizedCrop(16)


class Noise:
    """Images of noise of several sizes; counts what is decoded."""

    def __init__(self) -> None:
        self.read_paths: list[str] = []

    def read(self, path: str) -> Image.Image:
        self.read_paths.append(path)
        number = int(path)
        size = (20 + number, 30 - number, 3)
        return Image.fromarray(np.random.default_rng(number).integers(0, 256, size, np.uint8))


def draws(numbers: range) -> Iterator[EpisodeDraw]:
    for number in numbers:
        images = [Example(str((number + index) % 5), index % 2) for index in range(4)]
        yield EpisodeDraw(number, "noise", (0, 1), tuple(images[:3]), tuple(images[3:]))


def reader(source: Noise, budget_mib: float = 1, workers: int = 0) -> EpisodeImages:
    return EpisodeImages({"noise": source}, KeptPixels(budget_mib), workers, CPU)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("budget_mib", [0, 0.004, 1])
def test_crops_are_those_of_the_generator_of_the_tasks_number(
    workers: int, budget_mib: float
) -> None:
    source = Noise()
    for images in reader(source, budget_mib, workers).cropped(draws(range(4)), CROP, seed=3):
        generator = torch.Generator().manual_seed(crop_seed(3, images.draw.number))
        examples = (*images.draw.few_shot, *images.draw.queries)
        wanted = CROP([to_tensor(Noise().read(example.path)) for example in examples], generator)
        assert torch.equal(torch.cat([images.images_SCHW, images.images_QCHW]), wanted)
        assert len(images.images_SCHW) == 3


def test_a_later_start_gives_the_same_tasks() -> None:
    whole = [*reader(Noise()).cropped(draws(range(6)), CROP, seed=1)]
    rest = [*reader(Noise()).cropped(draws(range(4, 6)), CROP, seed=1)]
    assert [images.draw for images in rest] == [images.draw for images in whole[4:]]
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.images_SCHW, other.images_SCHW)


def test_seeds_and_numbers_have_different_crops() -> None:
    assert len({crop_seed(seed, number) for seed in range(20) for number in range(20)}) == 400
    assert all(0 <= crop_seed(seed, 0) < 2**63 for seed in range(100))


def test_squares_are_those_of_the_test_transform() -> None:
    pixels = TestPixels(16)
    for images in reader(Noise(), workers=2).squares(draws(range(3)), pixels):
        for example, square_CHW in zip(images.draw.few_shot, images.images_SCHW, strict=True):
            wanted = to_tensor(pixels.square(Noise().read(example.path)))
            assert torch.equal(square_CHW, wanted)


def test_an_image_is_decoded_once_if_it_fits_and_else_for_each_task() -> None:
    source = Noise()
    [*reader(source).cropped(draws(range(5)), CROP, seed=1)]
    assert sorted(source.read_paths) == ["0", "1", "2", "3", "4"]
    source = Noise()
    [*reader(source, budget_mib=0).cropped(draws(range(5)), CROP, seed=1)]
    assert len(source.read_paths) == 20


def test_the_budget_is_a_limit() -> None:
    kept = KeptPixels(100 / 2**20)
    for number in range(10):
        kept.get(number, lambda number=number: np.full(30, number, np.uint8))
    assert len(kept) == 3
    assert kept.get(9, lambda: np.full(30, 7, np.uint8))[0] == 7
    assert kept.get(1, lambda: np.full(30, 7, np.uint8))[0] == 1
