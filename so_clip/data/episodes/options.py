"""The options of episodes."""

from typing import Any

from pydantic import ValidationInfo, field_validator

from so_clip.checks import Options, option, option_key, whole
from so_clip.errors import InputError

# One class leaves nothing to decide.
LEAST_WAYS = 2


class EpisodeOptions(Options):
    """How many classes and images an episode (a task) has."""

    ways: tuple[int, int] = option(
        (5, 50), "least and most classes of a task; their number is uniform between these"
    )
    queries: int = option(
        10, "query images of each class; at most half of the smallest class of the task", ge=1
    )
    images: int = option(100, "most few-shot images of a task, over all its classes", ge=1)
    varied_shots: bool = option(
        False,
        "false (the same shots of each class) | true (Meta-Dataset's rule: the shots differ "
        "between tasks and classes)",
    )

    @field_validator("ways", mode="before")
    @classmethod
    def _check_ways(cls, value: Any, info: ValidationInfo) -> tuple[int, int]:
        key = option_key(info)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise InputError(f"{key}={value}: must be two whole numbers, such as [5,50].")
        low, high = (whole(key, ways, LEAST_WAYS) for ways in value)
        if low > high:
            raise InputError(f"{key}=[{low},{high}]: needs least <= most, such as [{high},{low}].")
        return low, high

    def most_ways(self, shots: int | None) -> int:
        """Return the most classes of a task such that `images` holds its few-shot images.

        Args:
            shots: images of each class; None: varied shots, at least one of each class.

        Raises:
            InputError: `images` does not hold the few-shot images of a task of the least ways.
        """
        low, high = self.ways
        most = self.images // (shots or 1)
        if most >= low:
            return min(high, most)
        if shots is None:
            problem = f"a task of {low} classes has {low} few-shot images or more"
            fewer_shots = ""
        else:
            problem = f"{low} classes with shots={shots} have {low * shots} few-shot images"
            fewer = self.images // low
            fewer_shots = f", or shots={fewer} or fewer" if fewer else ""
        fewer_ways = f", or fewer least classes in episodes.ways=[{low},{high}]"
        raise InputError(
            f"episodes.images={self.images}: {problem}. Give "
            f"episodes.images={low * (shots or 1)} or more{fewer_shots}{fewer_ways}."
        )
