"""Training batches and the test stream: complete, in order, seeded, and bounded."""

import gc
import math
import random
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data.batches import TestStream, TrainBatches
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder, load_uint8
from so_clip.data.transforms import RandomResizedCrop, TestPixels
from so_clip.errors import InputError
from tests.oracles import crop_oracle


class Painted:
    """Images made on the spot: number n is one flat colour. Counts what is asked of it."""

    def __init__(self, broken: str = "", seconds: float = 0) -> None:
        self.broken = broken
        self.seconds = seconds
        self.reads: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def read(self, path: str) -> Image.Image:
        with self.lock:
            self.reads[path] += 1
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        time.sleep(self.seconds * random.Random(path).random())
        with self.lock:
            self.at_once -= 1
        if path == self.broken:
            raise InputError(f"{path}: the image is missing.")
        number = int(path)
        return Image.new("RGB", (5 + number % 7, 4), (number % 256, number // 256, 7))

    def missing(self, paths):
        return []


def _numbered(count: int) -> list[Example]:
    return [Example(str(number), number % 10) for number in range(count)]


def _flat(number: int) -> torch.Tensor:
    return torch.full((3, 4 + number % 3, 6), number, dtype=torch.uint8)


def _train(count=7, batch_size=3, seed=0, **options) -> TrainBatches:
    generator = torch.Generator().manual_seed(seed)
    images = [_flat(number) for number in range(count)]
    labels = [number % 4 for number in range(count)]
    return TrainBatches(images, labels, batch_size, 8, generator, "cpu", **options)


def test_an_epoch_is_every_image_once_with_its_label():
    batches = _train(count=7, batch_size=3)
    for _ in range(3):
        epoch = list(batches.epoch())
        assert [len(labels_B) for _, labels_B in epoch] == [3, 3, 1]
        seen = []
        for images_BCHW, labels_B in epoch:
            assert images_BCHW.shape == (len(labels_B), 3, 8, 8)
            assert (images_BCHW.dtype, labels_B.dtype) == (torch.uint8, torch.int64)
            numbers_B = images_BCHW[:, 0, 0, 0].long()
            assert torch.equal(numbers_B % 4, labels_B)
            seen += numbers_B.tolist()
        assert sorted(seen) == list(range(7))


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 50))
def test_an_epoch_has_as_many_batches_as_its_images_need(count, batch_size):
    batches = _train(count, batch_size)
    assert len(list(batches.epoch())) == math.ceil(count / batch_size)


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 4))
def test_an_epoch_of_whole_batches_has_several_crops_of_each_image(count, batch_size, crops):
    batches = _train(count, batch_size, drop_last=True, crops=crops)
    sizes = [len(labels_B) for _, labels_B in batches.epoch()]
    total = count * crops
    whole = total // batch_size
    assert sizes == ([batch_size] * whole if whole else [total])
    seen = Counter(
        number
        for images_BCHW, _ in _train(count, total, crops=crops).epoch()
        for number in images_BCHW[:, 0, 0, 0].tolist()
    )
    assert seen == dict.fromkeys(range(count), crops)


def test_epochs_are_seeded_shuffled_and_leave_the_global_generators_alone(
    eurosat_images: list[Path],
):
    def order(batches: TrainBatches) -> list[int]:
        return [label for _, labels_B in batches.epoch() for label in labels_B.tolist()]

    images = [torch.from_numpy(np.array(Image.open(f)).transpose(2, 0, 1)) for f in eurosat_images]

    def make(seed: int) -> TrainBatches:
        generator = torch.Generator().manual_seed(seed)
        return TrainBatches(images, range(len(images)), 16, 32, generator, "cpu")

    states = torch.random.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = make(1), make(1)
    for _ in range(2):
        for (images_1, labels_1), (images_2, labels_2) in zip(
            one.epoch(), two.epoch(), strict=True
        ):
            assert torch.equal(images_1, images_2)
            assert torch.equal(labels_1, labels_2)
    orders = [order(make(1)), order(one), order(make(2)), list(range(len(images)))]
    assert len({tuple(o) for o in orders}) == 4
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_the_state_of_the_generator_resumes_the_same_batches():
    batches = _train(seed=3)
    list(batches.epoch())
    state = batches.generator.get_state()
    expected = list(batches.epoch())
    batches.generator.set_state(state)
    for (images_1, labels_1), (images_2, labels_2) in zip(expected, batches.epoch(), strict=True):
        assert torch.equal(images_1, images_2)
        assert torch.equal(labels_1, labels_2)


def test_batches_are_the_crops_of_the_transform():
    batches, generator = _train(seed=5), torch.Generator().manual_seed(5)
    order = torch.randperm(7, generator=generator).tolist()
    images_BCHW = RandomResizedCrop(8)([_flat(number) for number in order[:3]], generator)
    assert torch.equal(next(batches.epoch())[0], images_BCHW)


def test_scale_and_flip_reach_the_crop():
    batches = _train(scale=(0.5, 0.6), flip=False)
    assert (batches.crop.scale, batches.crop.flip) == ((0.5, 0.6), False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("budget", "device_type"), [(4096, "cuda"), (0, "cpu")])
def test_images_above_the_budget_stay_on_the_cpu(budget, device_type):
    image = _flat(1)
    batches = TrainBatches(
        [image, _flat(2), image], [0, 1, 0], 2, 8, torch.Generator(), "cuda", budget
    )  # fmt: skip
    assert {image.device.type for image in batches.images} == {device_type}
    assert batches.images[0].data_ptr() == batches.images[2].data_ptr()
    for images_BCHW, labels_B in batches.epoch():
        assert (images_BCHW.device.type, labels_B.device.type) == ("cuda", "cuda")


@pytest.mark.parametrize(("budget", "device_type"), [(4096, "meta"), (1, "meta"), (0.1, "cpu")])
def test_the_budget_counts_a_repeated_image_once(budget, device_type):
    # The meta device stands in for any that is not the CPU. One MiB is 2^20 bytes.
    image = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    batches = TrainBatches([image] * 5, [0] * 5, 2, 8, torch.Generator(), "meta", budget)
    assert {image.device.type for image in batches.images} == {device_type}
    assert len({id(image) for image in batches.images}) == 1


@pytest.mark.parametrize(
    ("count", "labels", "batch_size", "message"),
    [(0, 0, 3, "0 training images"), (3, 2, 3, "3 .* 2 labels"), (3, 3, 0, "batch_size=0")],
)
def test_bad_training_sets_are_refused(count, labels, batch_size, message):
    images = [_flat(number) for number in range(count)]
    with pytest.raises(InputError, match=message):
        TrainBatches(images, [0] * labels, batch_size, 8, torch.Generator(), "cpu")


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_the_stream_is_complete_and_in_order(workers):
    source = Painted(seconds=0.002)
    stream = TestStream(source, _numbered(53), TestPixels(8), 10, workers)
    assert len(stream) == 6
    for _ in range(2):  # a stream can be read again
        numbers, labels = [], []
        for images_BCHW, labels_B in stream:
            assert images_BCHW.shape == (len(labels_B), 3, 8, 8)
            assert (images_BCHW.dtype, labels_B.dtype) == (torch.uint8, torch.int64)
            numbers += images_BCHW[:, 0, 0, 0].tolist()
            labels += labels_B.tolist()
        assert numbers == list(range(53))
        assert labels == [number % 10 for number in range(53)]
    assert set(source.reads.values()) == {2}
    assert source.most_at_once <= max(1, workers)


def test_the_stream_holds_clips_pixels(eurosat_images: list[Path]):
    root = eurosat_images[0].parent.parent
    examples = [Example(file.relative_to(root).as_posix(), 0) for file in eurosat_images[:6]]
    [(images_BCHW, _)] = TestStream(ImageFolder(root), examples, TestPixels(224), 16, workers=2)
    for pixels_CHW, file in zip(images_BCHW, eurosat_images, strict=False):
        expected = crop_oracle.clip_test_pixels_HWC(Image.open(file), 224)
        assert np.array_equal(pixels_CHW.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 2), (4, 3)])
def test_no_more_than_the_prefetched_batches_are_decoded_ahead(workers, prefetch):
    source = Painted()
    stream = TestStream(
        source, _numbered(400), TestPixels(8), 10, workers, prefetch_batches=prefetch
    )
    most_ahead = 0
    for used, _ in enumerate(stream, start=1):
        if used < 6:
            time.sleep(0.02)  # time enough to decode everything, were it allowed
        most_ahead = max(most_ahead, source.reads.total() - used * 10)
    assert 0 < most_ahead <= prefetch * 10


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_with_the_test_set(workers):
    def most_alive(count: int) -> int:
        """Return the highest number of batches in memory while a slow consumer reads."""
        most = 0
        for images_BCHW, _ in TestStream(Painted(), _numbered(count), TestPixels(31), 4, workers):
            time.sleep(0.001)
            shape = images_BCHW.shape
            alive = sum(type(o) is torch.Tensor and o.shape == shape for o in gc.get_objects())
            most = max(most, alive)
        return most

    assert most_alive(32) <= 4  # prefetch_batches + 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_unreadable_image_raises_its_error_after_the_batches_before_it(workers):
    source = Painted(broken="25", seconds=0.002)
    batches = iter(TestStream(source, _numbered(200), TestPixels(8), 10, workers))
    assert len(next(batches)[1]) == 10
    assert len(next(batches)[1]) == 10
    with pytest.raises(InputError) as caught:
        next(batches)
    assert str(caught.value) == "25: the image is missing."
    assert source.reads.total() < 100


def test_a_consumer_that_stops_early_leaves_no_threads():
    before = threading.active_count()
    stream = iter(TestStream(Painted(seconds=0.01), _numbered(1000), TestPixels(8), 10, 4))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_streams_may_run_in_parallel_and_inside_threads():
    def numbers() -> list[int]:
        stream = TestStream(Painted(seconds=0.001), _numbered(40), TestPixels(8), 7, 2)
        return [n for images_BCHW, _ in stream for n in images_BCHW[:, 0, 0, 0].tolist()]

    results: list[list[int]] = []
    threads = [threading.Thread(target=lambda: results.append(numbers())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(40))] * 3


def test_an_empty_list_is_an_empty_stream():
    stream = TestStream(Painted(), [], TestPixels(8), 10, 2)
    assert len(stream) == 0
    assert list(stream) == []


def test_pinning_is_for_cuda_only():
    stream = TestStream(Painted(), _numbered(3), TestPixels(8), 2, 0, pin=True)
    assert stream.pin == torch.cuda.is_available()
    assert next(iter(stream))[0].is_pinned() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"prefetch_batches": 0}, "prefetch_batches=0"),
    ],
)
def test_bad_stream_settings_are_refused(change, message):
    arguments = {"pixels": TestPixels(8), "batch_size": 2, "workers": 0} | change
    with pytest.raises(InputError, match=message):
        TestStream(Painted(), _numbered(3), **arguments)


def test_real_few_shots_run_through(shared: Path):
    root = shared / "data" / "eurosat" / "2750"
    examples = [Example(f"River/{file.name}", 8) for file in sorted((root / "River").iterdir())[:5]]
    images = load_uint8(ImageFolder(root), examples, progress=False)
    generator = torch.Generator().manual_seed(0)
    batches = TrainBatches(images, [e.label for e in examples], 32, 224, generator, "cpu")
    [(images_BCHW, labels_B)] = batches.epoch()
    assert images_BCHW.shape == (5, 3, 224, 224)
    assert labels_B.tolist() == [8] * 5
