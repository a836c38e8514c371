"""The checks of tests/test_cuda.py, on the CPU with emulated graphs."""

import pytest

from tests.helpers.device_checks import check_half_copies, check_losses, check_resume


def test_copies_in_half_precision_equal_casts_after_captured_steps() -> None:
    check_half_copies("cpu", steps=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("method=so",),
        ("method=adamw", "schedule.batch_size=24"),
        ("method=relora", "adapter.every=16"),
    ],
    ids=" ".join,
)
def test_captured_steps_have_the_losses_of_eager_ones(tmp_path, overrides) -> None:
    check_losses("cpu", tmp_path, *overrides, steps=22)


@pytest.mark.slow
def test_a_run_resumes_after_its_capture(tmp_path) -> None:
    check_resume("cpu", tmp_path, "method=so")
