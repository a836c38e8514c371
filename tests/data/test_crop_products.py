"""Crops as matrix products equal torch's resampler, image by image."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from so_clip.data import crop_products
from so_clip.data.batches import TrainBatches
from so_clip.data.crop_products import ImageBlocks, cropped, stored_bytes
from so_clip.data.crop_weights import axis_weights
from so_clip.data.transforms import RandomResizedCrop
from tests.oracles import crop_oracle

CPU = torch.device("cpu")
sides = st.one_of(st.integers(1, 8), st.integers(1, 150), st.sampled_from([31, 32, 33, 64, 65]))
levels = st.sampled_from([2, 256])
sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=4)


def _images(sizes: list[tuple[int, int]], seed: int = 0, levels: int = 256) -> list[torch.Tensor]:
    """Noise is hardest for a resampler. Noise of two levels overshoots most."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(levels, (3, *size), generator=generator).mul(255 // (levels - 1)).byte()
        for size in sizes
    ]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80)
@given(
    sizes, st.sampled_from([2, 7, 32, 63, 224]), st.integers(0, 2**31), st.sampled_from([2, 256])
)
def test_products_equal_torchs_resampler(sizes, image_size, seed, levels):
    images, crop = _images(sizes, seed, levels), RandomResizedCrop(image_size)
    one, other = _generator(seed), _generator(seed)
    expected_BCHW = crop(images, one)
    found_BCHW = cropped(crop, images, other, CPU, products=True)
    assert torch.equal(one.get_state(), other.get_state())
    assert (found_BCHW.dtype, found_BCHW.is_contiguous()) == (torch.uint8, True)
    difference_BCHW = (found_BCHW.int() - expected_BCHW.int()).abs()
    if max(map(max, sizes)) <= image_size:
        assert not difference_BCHW.any()
    assert difference_BCHW.max() <= 1
    assert (difference_BCHW > 0).sum() <= 1 + difference_BCHW.numel() / 1000


@pytest.mark.parametrize("size", [(375, 500), (1500, 1200)])
def test_few_pixels_of_large_crops_differ_by_one(size):
    images, crop = _images([size], levels=2), RandomResizedCrop(224, scale=(1.0, 1.0))
    expected_BCHW = crop(images, _generator(0)).int()
    found_BCHW = cropped(crop, images, _generator(0), CPU, products=True).int()
    difference_BCHW = (found_BCHW - expected_BCHW).abs()
    assert difference_BCHW.max() <= 1
    assert (difference_BCHW > 0).double().mean() < 5e-5


@settings(max_examples=25)
@given(sides, sides, st.sampled_from([2, 9, 48]), st.integers(0, 2**31))
def test_products_equal_explicit_weights_in_float64(height, width, image_size, seed):
    [image_CHW], crop = _images([(height, width)], seed), RandomResizedCrop(image_size)
    [box] = crop.draw([(height, width)], _generator(seed))
    cut_CHW = image_CHW[:, box.top :, box.left :][:, : box.height, : box.width]
    expected_HWC = crop_oracle.resized_in_float64(
        cut_CHW.permute(1, 2, 0).double().numpy(), image_size
    )
    if box.flip:
        expected_HWC = expected_HWC[:, ::-1]
    [found_CHW] = cropped(crop, [image_CHW], _generator(seed), CPU, products=True)
    assert np.abs(found_CHW.permute(1, 2, 0).double().numpy() - expected_HWC).max() <= 2


@pytest.mark.parametrize("length", [1, 2, 5, 48, 100, 1000])
def test_weights_are_those_of_the_filter(length):
    weights = axis_weights(length, 48)
    dense_SL = np.zeros((48, length))
    np.put_along_axis(dense_SL, weights.pixel_ST, weights.weight_ST, axis=1)
    expected_SL = crop_oracle.cubic_weights(length, 48)
    assert np.abs(dense_SL - expected_SL).max() <= 2.0 ** -(weights.bits + 1) + 1e-12
    assert (weights.weight_ST * 2.0**weights.bits % 1 == 0).all()
    assert 2**13 <= np.abs(weights.weight_ST).max() * 2.0**weights.bits <= 2**15


def test_real_photographs_differ_nowhere(eurosat_images):
    images = [
        torch.from_numpy(np.array(crop_oracle.Image.open(file).convert("RGB")).transpose(2, 0, 1))
        for file in eurosat_images
    ]
    crop = RandomResizedCrop(224)
    found_BCHW = cropped(crop, images, _generator(2), CPU, products=True)
    assert torch.equal(found_BCHW, crop(images, _generator(2)))


class _Counted(TorchDispatchMode):
    """Counts the operations with a result on the meta device; it stands in for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.fake_quantize_per_tensor_affine_cachemask.default:
            # torch has this one for CPU and CUDA only. Its second result is a mask for gradients.
            with torch.utils._python_dispatch._disable_current_modes():
                result = torch.empty_like(args[0]), torch.empty_like(args[0], dtype=torch.bool)
        else:
            result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "meta" for tensor in tensors) and not func.is_view:
            self.names.append(str(func))
        return result


@pytest.mark.parametrize(("budget_mib", "operations"), [(4096, 8), (0, 9)])
def test_a_batch_takes_eight_operations_and_one_copy(budget_mib, operations):
    images = _images([(64, 64), (40, 70), (375, 500), (64, 64)])
    batches = TrainBatches(
        images, [3, 1, 2, 0], 2, 32, _generator(0), "meta", budget_mib, products=True
    )
    counted = _Counted()
    epoch = batches.epoch()
    for _ in range(2):
        with counted:
            images_BCHW, labels_B = next(epoch)
        assert (images_BCHW.device.type, labels_B.device.type) == ("meta", "meta")
        assert (images_BCHW.shape, labels_B.dtype) == ((2, 3, 32, 32), torch.int64)
    copies = [name for name in counted.names if "_to_copy" in name]
    assert len(counted.names) == 2 * operations, counted.names
    # The conversions to float and to uint8 are copies too.
    assert len(copies) == 2 * (operations - 5), counted.names


def _epochs(products: bool, **options) -> list[torch.Tensor]:
    images = _images([(30 + number, 64 - number) for number in range(7)])
    images.append(images[0])
    batches = TrainBatches(
        images, range(8), 3, 24, _generator(4), "cpu", products=products, **options
    )
    return [tensor for _ in range(2) for batch in batches.epoch() for tensor in batch]


@pytest.mark.parametrize("options", [{}, {"image_budget_mib": 0}, {"crops": 2, "drop_last": True}])
def test_batches_by_products_are_the_batches_of_the_cpu(options):
    plain, products = _epochs(False, **options), _epochs(True, **options)
    assert len(plain) == len(products)
    for expected, found in zip(plain, products, strict=True):
        assert expected.dtype == found.dtype
        difference = (expected.int() - found.int()).abs()
        assert difference.max() <= (1 if expected.ndim == 4 else 0)
        assert (difference > 0).double().mean() < 1e-3


def test_an_epoch_by_products_resumes_after_any_batch():
    def make() -> TrainBatches:
        images = _images([(20, 30)] * 7)
        return TrainBatches(images, range(7), 2, 8, _generator(1), "cpu", products=True)

    for taken in range(5):
        batches, resumed = make(), make()
        [*islice(batches.epoch(), taken)]
        resumed.load_state_dict(batches.state_dict())
        whole = [labels_B.tolist() for _, labels_B in make().epoch()]
        assert [labels_B.tolist() for _, labels_B in resumed.epoch()] == whole[taken:]
        assert resumed.state_dict()["taken"] == 4


def test_a_batch_of_huge_originals_is_cropped_in_parts(monkeypatch):
    images, crop = (
        _images([(80, 90), (20, 20), (70, 33), (64, 64), (9, 100)]),
        RandomResizedCrop(32),
    )
    blocks = ImageBlocks(images, CPU)
    labels_B, order = torch.arange(5), [4, 0, 2, 1, 3]
    whole, labels = blocks.crop(order, crop, _generator(3), labels_B)
    monkeypatch.setattr(crop_products, "MOST_PIXELS", 20_000)
    parts, labels_of_parts = blocks.crop(order, crop, _generator(3), labels_B)
    assert torch.equal(whole, parts)
    assert torch.equal(labels, labels_B)
    assert torch.equal(labels_of_parts, labels_B)


@settings(max_examples=60)
@given(sizes)
def test_a_store_has_every_image_and_pads_by_an_eighth_at_most(sizes):
    images = _images(sizes)
    blocks = ImageBlocks([*images, images[0]], CPU)
    assert len(blocks) == len(images) + 1
    for number, image in enumerate([*images, images[0]]):
        assert torch.equal(blocks[number], image)
    assert blocks.blocks_KP.nbytes == stored_bytes(images)
    nbytes = sum(image.nbytes for image in images)
    assert blocks.blocks_KP.nbytes - blocks.pixels_of_block <= 1.125 * nbytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crops_on_a_gpu_are_those_of_the_cpu_and_nothing_waits():
    images = _images([(64, 64), (40, 70), (375, 500), (9, 224)])
    crop, device = RandomResizedCrop(224), torch.device("cuda")
    expected_BCHW = crop(images, _generator(0))
    cropped(crop, images, _generator(0), device)  # the first call loads libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        found_BCHW = cropped(crop, images, _generator(0), device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference_BCHW = (found_BCHW.cpu().int() - expected_BCHW.int()).abs()
    assert difference_BCHW.max() <= 1
    assert not difference_BCHW[[0, 1, 3]].any()
