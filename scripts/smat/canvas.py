"""Pictures as arrays: coordinates of a moved and turned shape, colours, grounds and the finish.

A picture is drawn at GRID x GRID pixels and reduced to SIZE x SIZE, so that its edges are smooth.
Colours are RGB, 0..255.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

SIZE = 32  # pixels per side of a finished picture
GRID = 64  # pixels per side while it is drawn
LEAST_CONTRAST = 130.0  # distance in RGB between a shape and its ground

Generator = np.random.Generator
# Draws one picture: pixels_HWC (float, 0..255) at GRID x GRID.
Painter = Callable[[Generator], np.ndarray]
# Says which points of the plane belong to a shape: (x_HW, y_HW) -> bool_HW. The shape fills
# [-1, 1] in both directions, and y points down.
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]

_LINE = (np.arange(GRID) + 0.5) / GRID * 2 - 1
Y_HW, X_HW = np.meshgrid(_LINE, _LINE, indexing="ij")


def plane(
    generator: Generator, turn: float = 0.25, low: float = 0.45, high: float = 0.85
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates x_HW and y_HW of a shape that is moved, scaled and turned.

    Args:
        generator: draws the place, the size and the angle.
        turn: largest angle in both directions, radians.
        low, high: range of the shape's size, as a share of the picture.
    """
    size = generator.uniform(low, high)
    shift_x, shift_y = generator.uniform(-0.8, 0.8, 2) * (1 - size)
    angle = generator.uniform(-turn, turn)
    return turned((X_HW - shift_x) / size, (Y_HW - shift_y) / size, angle)


def turned(x_HW: np.ndarray, y_HW: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates in a plane whose shapes are turned clockwise by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return x_HW * cosine + y_HW * sine, y_HW * cosine - x_HW * sine


def contrast(generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two random colours that are far apart: of a shape and of its ground."""
    while True:
        ink, ground = generator.uniform(0, 255, (2, 3))
        if np.linalg.norm(ink - ground) > LEAST_CONTRAST:
            return ink, ground


def jittered(generator: Generator, colour: np.ndarray, spread: float = 12.0) -> np.ndarray:
    """Return a colour near `colour`."""
    return np.clip(colour + generator.normal(0, spread, 3), 0, 255)


def ground(generator: Generator, colour: np.ndarray) -> np.ndarray:
    """Return a ground of one colour: plain, with a gradient, or with soft blotches."""
    kind = generator.integers(3)
    light_HW = np.zeros((GRID, GRID))
    if kind == 1:
        along_HW, _ = turned(X_HW, Y_HW, generator.uniform(0, 2 * np.pi))
        light_HW = along_HW * generator.uniform(10, 35)
    elif kind == 2:
        light_HW = (soft_noise(generator, int(generator.integers(3, 8))) - 0.5) * 70
    return colour + light_HW[:, :, None]


def soft_noise(generator: Generator, cells: int) -> np.ndarray:
    """Return smooth noise in 0..1 with this many cells per side."""
    small = Image.fromarray((generator.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(small.resize((GRID, GRID), Image.Resampling.BICUBIC), np.float64) / 255


def over(pixels_HWC: np.ndarray, mask_HW: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return the picture with `colour` where the mask (bool or 0..1) is set."""
    mask_HW1 = mask_HW.astype(np.float64)[:, :, None]
    return pixels_HWC * (1 - mask_HW1) + colour * mask_HW1


def painted(generator: Generator, mask_HW: np.ndarray) -> np.ndarray:
    """Return the mask in one random colour on a ground of another."""
    ink, below = contrast(generator)
    return over(ground(generator, below), mask_HW, ink)


def outline(mask_HW: np.ndarray, width: int = 4) -> np.ndarray:
    """Return the border of a mask, `width` pixels wide at GRID."""
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    inner_HW = np.asarray(image.filter(ImageFilter.MinFilter(2 * width + 1))) > 0
    return mask_HW & ~inner_HW


def finish(generator: Generator, pixels_HWC: np.ndarray) -> np.ndarray:
    """Return the picture at SIZE x SIZE (uint8): a third of all are blurred, half have noise."""
    side = GRID // SIZE
    small_HWC = pixels_HWC.reshape(SIZE, side, SIZE, side, 3).mean(axis=(1, 3))
    small_HWC = small_HWC * generator.uniform(0.8, 1.1)
    if generator.random() < 0.5:
        small_HWC = small_HWC + generator.normal(0, generator.uniform(2, 14), small_HWC.shape)
    finished_HWC = np.clip(small_HWC, 0, 255).astype(np.uint8)
    if generator.random() < 0.33:
        image = Image.fromarray(finished_HWC)
        finished_HWC = np.asarray(image.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 1))))
    return finished_HWC
