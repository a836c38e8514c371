"""Draw episodes: each is a few-shot task that its number alone determines."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from so_clip.data.episodes.options import LEAST_WAYS, EpisodeOptions
from so_clip.data.episodes.pools import ClassPools
from so_clip.data.examples import Example
from so_clip.errors import InputError

# Meta-Dataset: the images of a larger class do not make the task larger.
MOST_OF_A_CLASS = 100
# Meta-Dataset: a class gets between half and twice the share of its size.
LEAST_WEIGHT, MOST_WEIGHT = 0.5, 2.0


@dataclass(frozen=True)
class EpisodeDraw:
    """One task.

    Attributes:
        number: of the draw.
        source: the dataset's name.
        labels: the labels in the dataset of the task's N classes, in the task's order.
        few_shot, queries: the images, class by class, labelled from 0 to N - 1.
    """

    number: int
    source: str
    labels: tuple[int, ...]
    few_shot: tuple[Example, ...]
    queries: tuple[Example, ...]


class EpisodeSampler:
    """Draws tasks from the classes of one or more datasets.

    A draw depends on seed, purpose, number, options and pools, and on no other draw. So a resumed
    process needs the next number only.

    Args:
        pools: the classes of each dataset. Each dataset is equally likely.
        options: numbers of classes and images.
        seed: chooses the tasks.
        purpose: a name that gives training and validation different tasks.
        shots: few-shot images of each class, or all of a smaller class; None: varied shots.

    Raises:
        InputError: `options.images` is too small, or about every dataset with fewer classes than a
            task.

    Source: varied shots and the numbers of query images follow Meta-Dataset, section 3.2 of
        arXiv:1903.03096 and meta_dataset/data/sampling.py of
        github.com/google-research/meta-dataset.
    """

    def __init__(
        self,
        pools: Sequence[ClassPools],
        options: EpisodeOptions,
        seed: int,
        purpose: str,
        shots: int | None,
    ) -> None:
        if options.varied_shots != (shots is None):
            raise ValueError(f"shots={shots} does not fit varied_shots={options.varied_shots}")
        self._pools, self._options, self._shots = tuple(pools), options, shots
        self._stream_name = f"{seed}/{purpose}"
        self._most_ways = options.most_ways(shots)
        if problems := [text for pool in pools if (text := _too_few_classes(pool, options))]:
            raise InputError("\n".join(problems))

    def draw(self, number: int) -> EpisodeDraw:
        """Return the task of a number."""
        stream = random.Random(f"{self._stream_name}/{number}")
        pool = stream.choice(self._pools)
        classes = len(pool.labels)
        ways = stream.randint(self._options.ways[0], min(self._most_ways, classes))
        chosen = stream.sample(range(classes), ways)
        few_shot: list[Example] = []
        queries: list[Example] = []
        shots_N, queries_N = self._counts(pool, chosen, stream)
        for label, index in enumerate(chosen):
            shots, query_count = shots_N[label], queries_N[label]
            if pool.queries is None:
                drawn = stream.sample(pool.few_shot[index], shots + query_count)
            else:
                drawn = stream.sample(pool.few_shot[index], shots)
                drawn += stream.sample(pool.queries[index], query_count)
            few_shot += [Example(path, label) for path, _ in drawn[:shots]]
            queries += [Example(path, label) for path, _ in drawn[shots:]]
        labels = tuple(pool.labels[index] for index in chosen)
        return EpisodeDraw(number, pool.source, labels, tuple(few_shot), tuple(queries))

    def _counts(
        self, pool: ClassPools, chosen: Sequence[int], stream: random.Random
    ) -> tuple[list[int], list[int]]:
        """Return the numbers of few-shot and of query images of the chosen classes."""
        sizes = [len(pool.few_shot[index]) for index in chosen]
        if pool.queries is None:
            shared = min(self._options.queries, min(sizes) // 2)
            queries, rests = [shared] * len(chosen), [size - shared for size in sizes]
        else:
            available = (len(pool.queries[index]) for index in chosen)
            queries, rests = [min(self._options.queries, size) for size in available], sizes
        if self._shots is None:
            return varied_shots(sizes, rests, self._options.images, stream), queries
        return [min(self._shots, rest) for rest in rests], queries


def varied_shots(
    sizes: Sequence[int], rests: Sequence[int], images: int, stream: random.Random
) -> list[int]:
    """Draw the few-shot images of each class by Meta-Dataset's rule.

        β ~ U(0, 1],  S = min(images, Σ_c ⌈β min(100, rest_c)⌉),  α_c ~ U(log 0.5, log 2),
        R_c = exp(α_c) size_c / Σ_k exp(α_k) size_k,  shots_c = min(⌊R_c (S − N)⌋ + 1, rest_c)

    Args:
        sizes: images of each of the N classes.
        rests: those of them that are no query images, 1 or more.
        images: most few-shot images in all, N or more.
        stream: gives the random numbers.
    """
    beta = 1 - stream.random()  # random() can be 0 but not 1
    total = min(images, sum(math.ceil(beta * min(MOST_OF_A_CLASS, rest)) for rest in rests))
    low, high = math.log(LEAST_WEIGHT), math.log(MOST_WEIGHT)
    weights = [size * math.exp(stream.uniform(low, high)) for size in sizes]
    weight_sum = sum(weights)
    ratios = [weight / weight_sum for weight in weights]
    wanted = [math.floor(ratio * (total - len(sizes))) + 1 for ratio in ratios]
    return [min(shots, rest) for shots, rest in zip(wanted, rests, strict=True)]


def _too_few_classes(pool: ClassPools, options: EpisodeOptions) -> str:
    """Return a message if a dataset has fewer classes than the smallest task; "" otherwise."""
    low, high = options.ways
    classes = len(pool.labels)
    if classes >= low:
        return ""
    reasons = f" ({'; '.join(pool.notes)})" if pool.notes else ""
    fewer = f"Give episodes.ways=[{classes},{high}], or l" if classes >= LEAST_WAYS else "L"
    return (
        f"{pool.source}: episodes.ways=[{low},{high}] needs {low} classes, but {pool.title} has "
        f"{classes} for tasks{reasons}. {fewer}eave {pool.source} out."
    )
