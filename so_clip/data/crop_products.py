"""Crops of a batch as two batched matrix products, for devices with an expensive launch.

An antialiased bicubic resize is linear and separable. With a matrix of weights for the columns and
one for the rows of each image, a batch of crops is two batched products. A mirrored crop has the
weights of its columns in reversed order.

    Y_b = clamp(round(X_b C_b^T), 0, 255),    Z_b = clamp(round(R_b Y_b), 0, 255)

The rounding between the products, and weights of 16 bits, are those of torch's uint8 resampler and
of Pillow. If no crop is larger than the square, all sums are exact in float32, and the pixels equal
those of torch's resampler bit for bit. Otherwise a few pixels in 100,000 differ by 1.

Tensor names end in their shape: B images of a batch, D distinct images, S side of the square, C H W
pixels of an original, Y rows and X columns that a batch reads, K blocks, P pixels of a block.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from so_clip.data.crop_weights import axis_weights
from so_clip.data.transforms import Crop, RandomResizedCrop

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Pixels of a block, the largest first. The padding of a store costs at most this share of it.
BLOCK_PIXELS = (64, 32, 16, 8, 4, 2, 1)
PADDING = 1 / 8
# A batch is cut in halves until it reads at most this many pixels, 128 MiB in float32. A batch of
# 32 photographs of 500 x 375 pixels reads at most 27 million.
MOST_PIXELS = 2**25


def uses_products(device: torch.device) -> bool:
    """Return whether crops on a device are products.

    On a CPU torch's resampler gives the same pixels, and is three times as fast or faster
    (results/tables/engine_crops_cpu.csv).
    """
    return device.type == "cuda"


def cropped(
    crop: RandomResizedCrop,
    images: Sequence[Tensor],
    generator: torch.Generator,
    device: torch.device,
    products: bool | None = None,
) -> Tensor:
    """Return images_BCHW uint8 on a device: a random crop of each of these images.

    Args:
        crop: draws the boxes from `generator`.
        images: uint8 tensors [3, height, width] of any sizes, on the CPU.
        generator: on the CPU.
        device: of the crops, and where they are computed.
        products: whether to use matrix products; None: see uses_products.
    """
    if uses_products(device) if products is None else products:
        blocks = ImageBlocks(images, device, staged=True)
        return blocks.crop(range(len(blocks)), crop, generator)[0]
    return crop([image.to(device) for image in images], generator)


class ImageBlocks:
    """Images of any sizes in one uint8 tensor, from which one operation reads parts of many.

    A row of an image is padded to whole blocks of P pixels. P is the largest size that pads all
    images together by at most an eighth. The first block holds ones: products add constants by it.

    Args:
        images: uint8 tensors [3, height, width] of any sizes. A repeated tensor is stored once.
        device: of the store and of the crops.
        staged: fill the store in the host's memory and move it in one copy, without waiting.
            Otherwise each image moves alone, and the host never holds the store.
    """

    def __init__(
        self, images: Sequence[Tensor], device: torch.device, staged: bool = False
    ) -> None:
        distinct = {id(image): image for image in images}
        number_of = {key: number for number, key in enumerate(distinct)}
        self._device = device
        self._number_of = [number_of[id(image)] for image in images]
        self._sizes_D2 = _sizes(distinct.values())
        height_D, width_D = self._sizes_D2.T
        self.pixels_of_block = _pixels_of_block(self._sizes_D2)
        self._row_blocks_D = -(-width_D // self.pixels_of_block)
        end_D = 1 + np.cumsum(3 * height_D * self._row_blocks_D)
        self._start_D = np.concatenate([[1], end_D[:-1]])
        assert end_D[-1] < 2**31, "block numbers are int32"
        self._pins = device.type == "cuda"
        self.blocks_KP = torch.empty(
            (int(end_D[-1]), self.pixels_of_block),
            dtype=torch.uint8,
            device="cpu" if staged else device,
            pin_memory=staged and self._pins,
        )
        self.blocks_KP[:1].fill_(1)
        for number, image in enumerate(distinct.values()):
            self._image(number).copy_(image)
        self.blocks_KP = self.blocks_KP.to(device, non_blocking=True)

    def __len__(self) -> int:
        return len(self._number_of)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image [3, height, width]: a view of the store."""
        return self._image(self._number_of[index])

    def crop(
        self,
        indices: Sequence[int],
        crop: RandomResizedCrop,
        generator: torch.Generator,
        labels_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Crop each of these images at random, in 8 operations. Nothing waits for the device.

        Huge originals take these operations once for each part of the batch.

        Args:
            indices: of the images.
            crop: draws the boxes from `generator`.
            generator: on the CPU.
            labels_B: int64 on the CPU; they move in the same copy. None: zeros.

        Returns:
            images_BCHW uint8 and labels_B, on the device.
        """
        number_B = np.array([self._number_of[index] for index in indices], np.int64)
        label_B = np.zeros_like(number_B) if labels_B is None else labels_B.numpy()
        crops = crop.draw(self._sizes_D2[number_B].tolist(), generator)
        parts = [
            self._crop(number_B[part], crops[part], crop.image_size, label_B[part])
            for part in self._parts(crops)
        ]
        if len(parts) == 1:
            return parts[0]
        images, labels = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(labels)

    def _parts(self, crops: Sequence[Crop]) -> list[slice]:
        """Return the parts of a batch that are small enough to be read."""
        parts, waiting = [], [(0, len(crops))]
        while waiting:
            start, end = waiting.pop()
            rows, blocks = self._extent(crops[start:end])
            middle = (start + end) // 2
            pixels = 3 * (end - start) * (rows + 1) * (blocks + 1) * self.pixels_of_block
            if pixels <= MOST_PIXELS or middle == start:
                parts.append(slice(start, end))
            else:
                waiting += [(middle, end), (start, middle)]
        return parts

    def _extent(self, crops: Sequence[Crop]) -> tuple[int, int]:
        """Return the most rows, and the most blocks of a row, that a crop covers."""
        size = self.pixels_of_block
        rows = max(crop.height for crop in crops)
        return rows, max((crop.left % size + crop.width - 1) // size + 1 for crop in crops)

    def _crop(
        self, number_B: Ints, crops: Sequence[Crop], side: int, label_B: Ints
    ) -> tuple[Tensor, Tensor]:
        batch = len(crops)
        rows, blocks = self._extent(crops)
        # The last block of a row and the last row of an image read ones.
        shapes = (
            (batch, 2),  # a label has 8 bytes, as two numbers in float32
            (batch, side, (blocks + 1) * self.pixels_of_block),
            (batch, side, rows + 1),
            (batch, rows + 1, 3, blocks + 1),
        )
        counts = [int(np.prod(shape)) for shape in shapes]
        # torch keeps freed page-locked memory, and gives it again after the copies from it.
        packed = torch.empty(sum(counts), pin_memory=self._pins)
        parts = np.split(packed.numpy(), np.cumsum(counts)[:-1])
        label_B2, columns_BSX, rows_BSY, block_BYCK = map(np.reshape, parts, shapes)
        label_B2.view(np.int64)[:, 0] = label_B
        self._put_weights(columns_BSX, rows_BSY, crops)
        block_BYCK.view(np.int32)[...] = self._blocks_under(number_B, crops, rows, blocks)
        labels, columns, weights, numbers = packed.to(self._device, non_blocking=True).split(counts)
        read_KP = self.blocks_KP.index_select(0, numbers.view(torch.int32))
        images_BCHW = _products(read_KP, columns.view(shapes[1]), weights.view(shapes[2]))
        return images_BCHW, labels.view(torch.int64)

    def _put_weights(self, columns_BSX: Floats, rows_BSY: Floats, crops: Sequence[Crop]) -> None:
        """Write the weights of a batch, and the constants that the products add.

        A tie is rounded up, as in torch's resampler. The products add half of the last place to the
        columns, because the device then rounds to even. They add a half to the rows, because the
        device then cuts off the fraction.
        """
        columns_BSX[...] = rows_BSY[...] = 0
        rows_BSY[:, :, -1] = 0.5
        side, ones = rows_BSY.shape[1], columns_BSX.shape[2] - self.pixels_of_block
        square_S1 = np.arange(side)[:, None]
        for crop, columns_SX, rows_SY in zip(crops, columns_BSX, rows_BSY, strict=True):
            across, down = axis_weights(crop.width, side), axis_weights(crop.height, side)
            columns_SX[:, ones] = 2.0 ** -(1 + across.bits)
            first = crop.left % self.pixels_of_block
            pixel_ST = across.pixel_ST + first
            columns_SX[square_S1[::-1] if crop.flip else square_S1, pixel_ST] = across.weight_ST
            rows_SY[square_S1, down.pixel_ST] = down.weight_ST

    def _blocks_under(
        self, number_B: Ints, crops: Sequence[Crop], rows: int, blocks: int
    ) -> npt.NDArray[np.int32]:
        """Return block_BYCK: the numbers of the blocks under each crop, and of the ones."""
        top_B1, left_B1, height_B1, width_B1, _ = np.array(crops, np.int64).T[:, :, None]
        size = self.pixels_of_block
        # Beyond a crop, all weights are 0: any block of the image will do.
        row_BY = top_B1 + np.minimum(np.arange(rows), height_B1 - 1)
        column_BK = np.minimum(
            left_B1 // size + np.arange(blocks), (left_B1 + width_B1 - 1) // size
        )
        row_BYC = 3 * row_BY[:, :, None] + np.arange(3)
        start_BYC = self._start_D[number_B, None, None] + (
            row_BYC * self._row_blocks_D[number_B, None, None]
        )
        block_BYCK = np.zeros((len(crops), rows + 1, 3, blocks + 1), np.int32)
        block_BYCK[:, :rows, :, :blocks] = start_BYC[..., None] + column_BK[:, None, None]
        return block_BYCK

    def _image(self, number: int) -> Tensor:
        height, width = self._sizes_D2[number].tolist()
        start, row_blocks = int(self._start_D[number]), int(self._row_blocks_D[number])
        blocks_KP = self.blocks_KP[start : start + 3 * height * row_blocks]
        padded_HCW = blocks_KP.view(height, 3, row_blocks * self.pixels_of_block)
        return padded_HCW[:, :, :width].permute(1, 0, 2)


def stored_bytes(distinct: Iterable[Tensor]) -> int:
    """Return the bytes that a store of these images takes."""
    sizes_D2 = _sizes(distinct)
    size = _pixels_of_block(sizes_D2)
    return size + 3 * _padded(sizes_D2, size)


def _sizes(images: Iterable[Tensor]) -> Ints:
    return np.array([image.shape[1:] for image in images], np.int64)


def _pixels_of_block(sizes_D2: Ints) -> int:
    most = (1 + PADDING) * _padded(sizes_D2, 1)
    return next(size for size in BLOCK_PIXELS if _padded(sizes_D2, size) <= most)


def _padded(sizes_D2: Ints, size: int) -> int:
    height_D, width_D = sizes_D2.T
    return int((height_D * -(-width_D // size) * size).sum())


def _products(read_KP: Tensor, columns_BSX: Tensor, rows_BSY: Tensor) -> Tensor:
    batch, side, columns = columns_BSX.shape
    rows = rows_BSY.shape[2]
    pixels_BYX = read_KP.view(batch, rows * 3, columns).float()
    narrow_BYS = torch.bmm(pixels_BYX, columns_BSX.transpose(1, 2))
    assert narrow_BYS.dtype == torch.float32, "crops are products in float32, outside autocast"
    # This is the one operation that rounds and clamps.
    narrow_BYS = torch.fake_quantize_per_tensor_affine(narrow_BYS, 1.0, 0, 0, 255)
    square_BSU = torch.bmm(rows_BSY, narrow_BYS.view(batch, rows, 3 * side)).clamp_(0, 255)
    square_BSCS = square_BSU.view(batch, side, 3, side)
    return square_BSCS.permute(0, 2, 1, 3).to(torch.uint8, memory_format=torch.contiguous_format)
