"""Temperature scaling: one number that calibrates confidences. This module needs no torch.

Array names end in their shape: V validation images, K classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

# The range of temperatures that is searched. CLIP's own logits need about 1.
COLDEST, HOTTEST = 1e-4, 1e4
# Halvings of the range of log T. The last one leaves a relative error of 1e-12.
_HALVINGS = 44

Array = npt.NDArray[Any]


def fit_temperature(logits_VK: Array, label_V: Array) -> float | None:
    """Return the temperature T with the smallest mean negative log-likelihood of the labels.

    With b = 1/T, z = logits and p = softmax(b z), the mean of -log p_label is convex in b. Its
    derivative is the mean of sum_k p_k z_k - z_label, and bisection finds where it is 0.

    Args:
        logits_VK: of validation images, of any float type. Constants added to a row change nothing.
        label_V: their classes, from 0.

    Returns:
        T; None if no T between COLDEST and HOTTEST is the best. This happens if all images are
        classified correctly (T falls to 0), if labels are not better than chance (T grows without
        end), and if there is no image.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.
    """
    if not len(label_V):
        return None
    logits_VK = logits_VK.astype(np.float64)
    logits_VK -= logits_VK.max(axis=1, keepdims=True)
    label_logit = float(np.take_along_axis(logits_VK, label_V[:, None], axis=1).mean())

    def slope(temperature: float) -> float:
        weight_VK = np.exp(logits_VK / temperature)
        mean_V = (weight_VK * logits_VK).sum(axis=1) / weight_VK.sum(axis=1)
        return float(mean_V.mean()) - label_logit

    # The slope falls with the temperature.
    low, high = np.log(COLDEST), np.log(HOTTEST)
    if slope(COLDEST) <= 0 or slope(HOTTEST) >= 0:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))
