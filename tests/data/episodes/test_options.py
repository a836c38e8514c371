"""The options of episodes, and what fits into a task."""

import pytest

from so_clip.checks import validated
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.errors import InputError

DEFAULTS = EpisodeOptions().model_dump()


def options(**values):
    return validated(EpisodeOptions, DEFAULTS | values, "episodes.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ways": 5}, r"episodes\.ways=5: must be two whole numbers, such as \[5,50\]"),
        ({"ways": [5]}, r"episodes\.ways=\[5\]: must be two whole numbers"),
        ({"ways": [1, 5]}, r"episodes\.ways=1: must be 2 or more"),
        ({"ways": [5, 2.5]}, r"episodes\.ways=2\.5: must be a whole number"),
        ({"ways": [50, 5]}, r"episodes\.ways=\[50,5\]: needs least <= most, such as \[5,50\]"),
        ({"queries": 0}, r"episodes\.queries=0: must be 1 or more"),
        ({"images": 0}, r"episodes\.images=0: must be 1 or more"),
        ({"varied_shots": 1}, r"episodes\.varied_shots=1: must be true or false"),
    ],
)
def test_values_that_no_task_can_have_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        options(**values)


@pytest.mark.parametrize(
    ("images", "shots", "most"), [(100, 1, 50), (100, 4, 25), (20, 4, 5), (30, None, 30)]
)
def test_images_limits_the_ways(images, shots, most):
    assert options(images=images).most_ways(shots) == most


@pytest.mark.parametrize(
    ("images", "shots", "message"),
    [
        (
            100,
            21,
            r"episodes\.images=100: 5 classes with shots=21 have 105 few-shot images\. Give "
            r"episodes\.images=105 or more, or shots=20 or fewer, or fewer least classes",
        ),
        (4, 1, r"have 5 few-shot images\. Give episodes\.images=5 or more, or fewer least classes"),
        (4, None, r"episodes\.images=4: a task of 5 classes has 5 few-shot images or more\. Give"),
    ],
)
def test_images_below_those_of_the_smallest_task_are_refused(images, shots, message):
    with pytest.raises(InputError, match=message):
        options(images=images).most_ways(shots)
