"""The number of test images per forward pass, if evaluation.batch_size=auto."""

from typing import Literal, TypeAlias

import torch

from so_clip.clip.classifier import Classifier
from so_clip.runtime.copies import ON_DEVICE
from so_clip.runtime.peak_memory import MIB, PeakMemory
from so_clip.runtime.precision import Precision

# The option's default, also the automatic size without CUDA; the limits of that with CUDA.
DEFAULT, SMALLEST, LARGEST = 256, 32, 1024
# The rest of the free memory is for the optimizer's state and for other users of the GPU.
FREE_SHARE = 0.5
# Two small batches: the difference of their peaks is the memory of the images between them.
_PROBED = (8, 24)


Choice: TypeAlias = int | Literal["auto"]


def batch_size(
    choice: Choice, classifier: Classifier, precision: Precision, device: torch.device
) -> int:
    """Return the number of images in a batch of an evaluation.

    Auto: on a CUDA device the largest power of two, 32 to 1024, that needs at most half of the free
    memory; elsewhere 256.

    Args:
        choice: the option's value.
        classifier: on the device; its image tower encodes two small batches of zeros.
        precision: of the image tower.
        device: of the classifier.
    """
    if choice != "auto":
        return choice
    if device.type != "cuda":
        return DEFAULT
    return fitting(free_bytes(device), bytes_per_image(classifier, precision, device))


def fitting(free: float, per_image: float) -> int:
    """Return the largest power of two, SMALLEST to LARGEST, that fits into a share of the memory.

    Args:
        free: bytes.
        per_image: bytes that each image of a batch needs.
    """
    size = LARGEST
    while size > SMALLEST and size * per_image > FREE_SHARE * free:
        size //= 2
    return size


def forecast_size(choice: Choice, on_cuda: bool) -> int:
    """Return the batch size of a forecast. A GPU counts as free for the largest batches."""
    if choice != "auto":
        return choice
    return LARGEST if on_cuda else DEFAULT


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a CUDA device that this process can still allocate."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused


def bytes_per_image(classifier: Classifier, precision: Precision, device: torch.device) -> float:
    """Return the bytes by which one more image in a batch raises the peak of its encoding."""
    backbone, peaks = classifier.backbone, []
    shape = (3, backbone.image_size, backbone.image_size)
    for count in _PROBED:
        peak = PeakMemory(classifier, None, device)
        with torch.inference_mode(), peak, precision.autocast():
            # The batches that are copied ahead are on the device too.
            ahead = torch.zeros(ON_DEVICE, count, *shape, dtype=torch.uint8, device=device)
            backbone.encode_image(ahead[0])
        peaks.append(peak.result()["peak_memory_mib"] * MIB)
    return (peaks[1] - peaks[0]) / (_PROBED[1] - _PROBED[0])
