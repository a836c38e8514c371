"""Imbalanced few-shot draws: the number of images of each class, and the images."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import draw_few_shot
from so_clip.data.imbalance import LEAST_ALPHA, MOST_ALPHA, class_counts, draw_count
from so_clip.errors import InputError

ALPHAS = st.sampled_from([LEAST_ALPHA, 0.01, 0.3, 1.0, 10.0, MOST_ALPHA])


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 16),
    ALPHAS,
    st.integers(0, 10**6),
)
def test_counts_add_up_and_no_class_is_empty(available, shots, alpha, seed):
    total = shots * len(available)
    counts = class_counts(available, total, alpha, random.Random(seed))
    assert sum(counts) == total
    assert min(counts) >= 1
    over = [count - room for count, room in zip(counts, available, strict=True)]
    # Repeats only where all images together are too few.
    assert max(over) <= 0 or min(over) >= 0
    assert counts == class_counts(available, total, alpha, random.Random(seed))


def test_a_large_alpha_is_even_and_a_small_one_is_not():
    room, classes = [1000] * 10, 10
    assert class_counts(room, 4 * classes, MOST_ALPHA, random.Random(1)) == [4] * classes
    uneven = class_counts(room, 4 * classes, LEAST_ALPHA, random.Random(1))
    assert sorted(uneven) == [1] * 9 + [31]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_have_the_moments_of_a_dirichlet(alpha):
    """The mean is 1/K and the variance (K - 1) / (K^2 (K alpha + 1))."""
    classes, total, draws = 5, 2_000, 400
    stream = random.Random(0)
    shares = [
        count / total
        for _ in range(draws)
        for count in class_counts([total] * classes, total, alpha, stream)
    ]
    mean = sum(shares) / len(shares)
    variance = sum((share - mean) ** 2 for share in shares) / len(shares)
    assert mean == pytest.approx(1 / classes)
    assert variance == pytest.approx((classes - 1) / (classes**2 * (classes * alpha + 1)), rel=0.15)


def test_a_class_with_too_few_images_leaves_the_rest_to_the_others():
    free = class_counts([10**6] * 3, 30_000, 1.0, random.Random(2))
    largest = free.index(max(free))
    room = [10**6] * 3
    room[largest] = 100
    counts = class_counts(room, 30_000, 1.0, random.Random(2))
    assert counts[largest] == 100
    others = [index for index in range(3) if index != largest]
    before, after = ([given[index] for index in others] for given in (free, counts))
    assert after[0] / after[1] == pytest.approx(before[0] / before[1], rel=0.01)


def test_no_image_repeats_before_all_are_drawn():
    group = [Example(f"{index}.jpg", 0) for index in range(5)]
    stream = random.Random(0)
    assert len(set(draw_count(group, 5, stream))) == 5
    repeated = Counter(draw_count(group, 8, stream))
    assert len(repeated) == 5
    assert sum(repeated.values()) == 8


def _splits(sizes: list[int], val_from_train: bool = False) -> Splits:
    train = [Example(f"{label}/{i}.jpg", label) for label, n in enumerate(sizes) for i in range(n)]
    val = [Example(f"val/{label}.jpg", label) for label in range(len(sizes))]
    names = [str(label) for label in range(len(sizes))]
    return Splits(train, [] if val_from_train else val, [], names, val_from_train=val_from_train)


@pytest.mark.parametrize("protocol", ["coop", "clip_lora"])
def test_an_imbalanced_draw_has_shots_images_per_class_on_average(protocol):
    splits = _splits([40, 3, 40, 40, 12])
    even = draw_few_shot(splits, 8, 1, protocol)
    drawn = draw_few_shot(splits, 8, 1, protocol, 0.5)
    assert len(drawn.train) == len(set(drawn.train)) == 40
    assert len(even.train) == (35 if protocol == "coop" else 40)
    assert len(drawn.val) == len(even.val)
    counts = Counter(label for _, label in drawn.train)
    assert len(set(counts.values())) > 1
    document = drawn.as_json()
    assert document["imbalance"] == 0.5
    assert document["counts"] == [counts[label] for label in range(5)]
    assert drawn == draw_few_shot(splits, 8, 1, protocol, 0.5)
    assert drawn.train != draw_few_shot(splits, 8, 2, protocol, 0.5).train
    assert not {"imbalance", "counts"} & set(even.as_json())


def test_imagenet_never_trains_on_validation_images():
    splits = _splits([9, 30, 30], val_from_train=True)
    drawn = draw_few_shot(splits, 8, 3, "clip_lora", 0.3)
    assert len(drawn.train) == len(set(drawn.train)) == 24
    assert not set(drawn.train) & set(drawn.val)
    assert Counter(label for _, label in drawn.val) == {0: 4, 1: 4, 2: 4}
    with pytest.raises(InputError, match="split_protocol=coop"):
        draw_few_shot(_splits([9, 9, 9], val_from_train=True), 8, 3, "clip_lora", 0.3)


def test_the_global_generator_is_not_used():
    splits, state = _splits([9, 9]), random.getstate()
    draw_few_shot(splits, 4, 1, "coop", 1.0)
    assert random.getstate() == state
