"""Tasks: their images, their numbers of images, and that their number alone determines them."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.episodes.options import EpisodeOptions
from so_clip.data.episodes.pools import ClassPools
from so_clip.data.episodes.sampler import EpisodeDraw, EpisodeSampler, varied_shots
from so_clip.data.examples import Example
from so_clip.errors import InputError
from tests.helpers.command import python


def pools_of(sizes, queries=None, source: str = "birds") -> ClassPools:
    """Return classes with these numbers of images, labelled 0, 10, 20, ..."""
    labels = [10 * index for index in range(len(sizes))]

    def images(name: str, counts) -> tuple[tuple[Example, ...], ...]:
        return tuple(
            tuple(Example(f"{source}/{name}/{label}/{i}.jpg", label) for i in range(count))
            for label, count in zip(labels, counts, strict=True)
        )

    held_out = None if queries is None else images("queries", queries)
    return ClassPools(source, tuple(labels), images("train", sizes), held_out)


@st.composite
def samplers(draw):
    """A sampler over one or two datasets, with or without query images of their own."""
    low = draw(st.integers(2, 4))
    shots = draw(st.one_of(st.none(), st.integers(1, 6)))
    options = EpisodeOptions(
        ways=(low, draw(st.integers(low, 8))),
        queries=draw(st.integers(1, 6)),
        images=draw(st.integers(low * (shots or 1), 60)),
        varied_shots=shots is None,
    )
    pools = []
    for source in ("birds", "boats")[: draw(st.integers(1, 2))]:
        own_queries = draw(st.booleans())
        sizes = st.lists(st.integers(1 if own_queries else 2, 130), min_size=low, max_size=9)
        few_shot = draw(sizes)
        counts = [draw(st.integers(1, 9)) for _ in few_shot] if own_queries else None
        pools.append(pools_of(few_shot, counts, source))
    return EpisodeSampler(pools, options, draw(st.integers(0, 9)), "any", shots), pools, options


@settings(max_examples=150)
@given(samplers(), st.integers(0, 2**40))
def test_tasks_hold_different_images_of_different_classes_within_the_limits(made, number):
    sampler, pools, options = made
    task = sampler.draw(number)
    pool = next(pool for pool in pools if pool.source == task.source)
    ways = len(task.labels)
    few_shot, queries = (
        Counter(label for _, label in part) for part in (task.few_shot, task.queries)
    )
    assert options.ways[0] <= ways <= options.ways[1]
    assert len({*task.labels}) == ways
    assert {*few_shot} == {*queries} == {*range(ways)}
    assert len(task.few_shot) <= options.images
    paths = [path for path, _ in (*task.few_shot, *task.queries)]
    assert len({*paths}) == len(paths)
    for part, images in ((task.few_shot, pool.few_shot), (task.queries, pool.queries)):
        images = pool.few_shot if images is None else images
        by_path = {path: label for of_class in images for path, label in of_class}
        assert [by_path[path] for path, _ in part] == [task.labels[label] for _, label in part]
        assert all(first.label <= second.label for first, second in pairwise(part))


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(2, 20), st.integers(1, 20)), min_size=2, max_size=6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
)
def test_fixed_shots_take_what_a_class_has(counts, shots, most_queries, share):
    sizes, query_sizes = zip(*counts, strict=True)
    options = EpisodeOptions(ways=(2, len(sizes)), queries=most_queries, images=1000)
    pool = pools_of(sizes, None if share else query_sizes)
    task = EpisodeSampler([pool], options, 1, "any", shots).draw(7)
    few_shot, queries = (
        Counter(label for _, label in part) for part in (task.few_shot, task.queries)
    )
    chosen = [label // 10 for label in task.labels]
    smallest = min(sizes[index] for index in chosen)
    for label, index in enumerate(chosen):
        shared = min(most_queries, smallest // 2)
        assert queries[label] == (shared if share else min(most_queries, query_sizes[index]))
        assert few_shot[label] == min(shots, sizes[index] - (shared if share else 0))


def meta_dataset_shots(sizes, rests, images, stream):
    """Meta-Dataset's own functions, written again with NumPy: sampling.py of its repository."""
    sizes_N, rests_N = np.array(sizes), np.array(rests)
    beta = 1 - stream.random()
    total = min(images, np.ceil(beta * np.minimum(100, rests_N)).sum())
    log_weights_N = [np.log(0.5) + np.log(4) * stream.random() for _ in sizes]
    shares_N = np.exp(log_weights_N) * sizes_N
    shares_N = shares_N / shares_N.sum()
    return np.minimum(np.floor(shares_N * (total - len(sizes))).astype(int) + 1, rests_N).tolist()


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(2, 1300), st.integers(1, 10)), min_size=2, max_size=50),
    st.integers(50, 500),
    st.integers(0, 2**40),
)
def test_varied_shots_follow_meta_dataset(counts, images, seed):
    sizes = [size for size, _ in counts]
    rests = [max(1, size - queries) for size, queries in counts]
    shots = varied_shots(sizes, rests, images, random.Random(seed))
    assert shots == meta_dataset_shots(sizes, rests, images, random.Random(seed))
    assert sum(shots) <= images


def test_varied_shots_reach_one_image_and_the_limit():
    options = EpisodeOptions(ways=(5, 5), images=100, varied_shots=True)
    sampler = EpisodeSampler([pools_of([300] * 5)], options, 1, "any", None)
    totals = [len(sampler.draw(number).few_shot) for number in range(300)]
    assert min(totals) < 20
    assert max(totals) > 95
    uneven = [Counter(label for _, label in sampler.draw(n).few_shot) for n in range(300)]
    assert max(max(counts.values()) / min(counts.values()) for counts in uneven) > 2


def test_the_number_alone_determines_a_task():
    def sampler(seed: int = 1, purpose: str = "train") -> EpisodeSampler:
        pools = [pools_of([20] * 30), pools_of([9] * 12, source="boats")]
        return EpisodeSampler(pools, EpisodeOptions(), seed, purpose, 2)

    state = random.getstate()
    forward = [sampler().draw(number) for number in range(20)]
    one = sampler()
    assert [one.draw(number) for number in reversed(range(20))] == forward[::-1]
    assert random.getstate() == state
    assert len({*forward}) == 20
    assert sampler(seed=2).draw(3) != forward[3] != sampler(purpose="validate").draw(3)


# Recorded once. Checkpoints count tasks, so the task of a number must never change.
RECORDED = """\
(40, 20, 10) ['40/2', '20/3', '10/3', '40/3', '20/2', '10/2']
(40, 20, 10) ['40/3', '40/2', '20/1', '20/2', '10/0', '40/0', '20/3', '10/1']
"""


def test_another_process_draws_the_recorded_tasks():
    code = """
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.data.episodes.sampler import EpisodeSampler
from tests.data.episodes.test_sampler import pools_of
for options, shots in ((EpisodeOptions(ways=(3, 4), queries=1), 1),
                       (EpisodeOptions(ways=(3, 4), queries=1, varied_shots=True, images=6), None)):
    task = EpisodeSampler([pools_of([4] * 6)], options, 1, "train", shots).draw(5)
    print(task.labels, [path[12:-4] for path, _ in (*task.few_shot, *task.queries)])
"""
    assert python(code) == RECORDED


def test_ways_sources_and_classes_are_uniform():
    # The limits are 4 standard deviations or more, and the seed is fixed: the test cannot flake.
    options = EpisodeOptions(ways=(2, 6), images=100, queries=1)
    pools = [pools_of([2] * 8), pools_of([2] * 4, source="boats")]
    sampler = EpisodeSampler(pools, options, 1, "any", 1)
    tasks: dict[str, list[EpisodeDraw]] = {"birds": [], "boats": []}
    for number in range(6000):
        task = sampler.draw(number)
        tasks[task.source].append(task)
    assert abs(len(tasks["birds"]) / 3000 - 1) < 0.06
    for source, most in (("birds", 6), ("boats", 4)):
        ways = Counter(len(task.labels) for task in tasks[source])
        assert {*ways} == {*range(2, most + 1)}
        expected = len(tasks[source]) / (most - 1)
        assert all(abs(count / expected - 1) < 0.2 for count in ways.values())
    first = Counter(task.labels[0] for task in tasks["birds"])  # the order is random, too
    expected = len(tasks["birds"]) / 8
    assert all(abs(first[10 * index] / expected - 1) < 0.25 for index in range(8))


class CountedImages(tuple[Example, ...]):
    """Images that count how many of them are read."""

    read: ClassVar[Counter[str]] = Counter()

    def __getitem__(self, index):
        self.read["images"] += 1
        return super().__getitem__(index)

    def __iter__(self):
        self.read["images"] += len(self)
        return super().__iter__()


def test_a_draw_reads_only_the_images_of_its_task():
    pool = pools_of([1300] * 40)
    counted = replace(pool, few_shot=tuple(map(CountedImages, pool.few_shot)))
    sampler = EpisodeSampler([counted], EpisodeOptions(varied_shots=True), 1, "any", None)
    CountedImages.read.clear()
    tasks = [sampler.draw(number) for number in range(20)]
    images = sum(len(task.few_shot) + len(task.queries) for task in tasks)
    assert CountedImages.read["images"] == images


def test_every_dataset_with_fewer_classes_than_a_task_is_refused():
    novel = ClassPools("boats", (), (), None, "novel", ("all images are gone",))
    pools = [pools_of([4] * 5), pools_of([4] * 3, source="cars"), pools_of([4]), novel]
    with pytest.raises(InputError) as caught:
        EpisodeSampler(pools, EpisodeOptions(), 1, "any", 1)
    assert str(caught.value).split("\n") == [
        "cars: episodes.ways=[5,50] needs 5 classes, but cars has 3 for tasks. "
        "Give episodes.ways=[3,50], or leave cars out.",
        "birds: episodes.ways=[5,50] needs 5 classes, but birds has 1 for tasks. Leave birds out.",
        "boats: episodes.ways=[5,50] needs 5 classes, but the novel half of boats has 0 for tasks "
        "(all images are gone). Leave boats out.",
    ]


def test_too_few_images_for_the_least_task_are_refused():
    with pytest.raises(InputError, match=r"episodes\.images=100: 5 classes with shots=21"):
        EpisodeSampler([pools_of([4] * 5)], EpisodeOptions(), 1, "any", 21)
