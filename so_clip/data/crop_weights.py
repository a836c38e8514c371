"""The weights of an antialiased bicubic resize along one axis, as torch's uint8 resampler has them.

Tensor names end in their shape: S pixels of the result, T taps, L pixels of the original.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# torch's resampler has weights of 16 bits with their sign, and at most 22 bits after the point.
_LARGEST, _MOST_BITS = 2**15, 22


class AxisWeights(NamedTuple):
    """The weights of T neighbouring pixels of the original, for each pixel of the result.

    Attributes:
        pixel_ST: numbers of the pixels of the original.
        weight_ST: multiples of 2^-bits, as float32.
        bits: after the point.
    """

    pixel_ST: npt.NDArray[np.int64]
    weight_ST: npt.NDArray[np.float32]
    bits: int


# Most lengths of a batch were in a batch before. An entry for a photograph takes about 25 KB.
@lru_cache(maxsize=1024)
def axis_weights(length: int, side: int) -> AxisWeights:
    """Return the weights that resize `length` pixels to `side`.

        scale = length / side,    stretch = max(scale, 1),    centre_s = scale (s + 1/2)
        w_sl = k((l - centre_s + 1/2) / stretch) / sum over l,    k: Keys' cubic with a = -1/2

    Source: `_compute_index_ranges_int16_weights` in aten/src/ATen/native/cpu/UpSampleKernel.cpp of
    github.com/pytorch/pytorch, which follows `precompute_coeffs` of Pillow.
    """
    scale = length / side
    stretch = max(scale, 1.0)
    center_S1 = scale * (np.arange(side)[:, None] + 0.5)
    start_S1 = np.maximum((center_S1 - 2 * stretch + 0.5).astype(np.int64), 0)
    end_S1 = np.minimum((center_S1 + 2 * stretch + 0.5).astype(np.int64), length)
    taps = int((end_S1 - start_S1).max())
    pixel_ST = np.minimum(start_S1, length - taps) + np.arange(taps)
    weight_ST = _cubic((pixel_ST - center_S1 + 0.5) / stretch)
    weight_ST *= (pixel_ST >= start_S1) & (pixel_ST < end_S1)
    weight_ST /= weight_ST.sum(axis=1, keepdims=True)
    bits = _bits(weight_ST.max())
    scaled_ST = weight_ST * 2.0**bits
    whole_ST = np.trunc(scaled_ST + np.copysign(0.5, scaled_ST))
    return AxisWeights(pixel_ST, (whole_ST / 2.0**bits).astype(np.float32), bits)


def _cubic(distance: Floats) -> Floats:
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bits(largest: float) -> int:
    """Return the bits after the point with which the largest weight still has 16 bits."""
    for bits in range(_MOST_BITS):
        if int(0.5 + largest * 2 ** (bits + 1)) >= _LARGEST:
            return bits
    return _MOST_BITS
