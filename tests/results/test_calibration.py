"""The temperature of validation images, against scipy's minimizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from so_clip.results.calibration import COLDEST, HOTTEST, fit_temperature


def nll(logits_VK, label_V, temperature):
    return -log_softmax(logits_VK / temperature, axis=1)[range(len(label_V)), label_V].mean()


def drawn(seed: int, images: int, classes: int, scale: float):
    """Return logits, and labels that follow the softmax of these logits at another scale."""
    generator = np.random.default_rng(seed)
    logits_VK = generator.normal(0, scale, (images, classes))
    noise_VK = generator.gumbel(size=(images, classes))
    return logits_VK, (3 * logits_VK / scale + noise_VK).argmax(axis=1)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), st.integers(20, 60), st.integers(2, 12), st.sampled_from([0.1, 1, 40])
)
def test_the_temperature_is_the_one_that_scipy_finds(seed, images, classes, scale):
    logits_VK, label_V = drawn(seed, images, classes, scale)
    temperature = fit_temperature(logits_VK, label_V)
    found = minimize_scalar(
        lambda log: nll(logits_VK, label_V, np.exp(log)),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    if temperature is None:
        assert (logits_VK.argmax(axis=1) == label_V).all()
        return
    assert nll(logits_VK, label_V, temperature) <= found.fun + 1e-12
    assert temperature == pytest.approx(np.exp(found.x), rel=1e-4)


def test_labels_that_follow_the_logits_need_no_scaling():
    logits_VK, label_V = drawn(0, 20_000, 5, 3)
    assert fit_temperature(logits_VK, label_V) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("constant", [0.0, -1e4, 1e4])
def test_the_scale_of_logits_is_the_temperature_and_constants_do_not_count(constant):
    logits_VK, label_V = drawn(1, 40, 10, 1)
    one = fit_temperature(logits_VK, label_V)
    assert one is not None
    scaled = fit_temperature(7.5 * logits_VK + constant, label_V)
    assert scaled == pytest.approx(7.5 * one, rel=1e-6)


def test_there_is_no_temperature_if_none_is_best():
    logits_VK, label_V = drawn(2, 30, 4, 1)
    assert fit_temperature(logits_VK, logits_VK.argmax(axis=1)) is None
    assert fit_temperature(logits_VK, logits_VK.argmin(axis=1)) is None
    assert fit_temperature(logits_VK[:0], label_V[:0]) is None
