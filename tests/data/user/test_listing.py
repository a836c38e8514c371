"""A drawn split depends only on seed and paths, and has the given shares."""

import random
import unicodedata
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from so_clip.data.user.listing import Listed, draw_split

SHARES = (0.5, 0.2, 0.3)
names = st.text("abcdeé", min_size=1, max_size=6)
files = st.sets(st.tuples(st.sampled_from(["ant", "bee", "cat"]), names), min_size=1, max_size=40)
thirds = st.sampled_from([SHARES, (0.8, 0.1, 0.1), (0.6, 0.0, 0.4), (1 / 3, 1 / 3, 1 / 3)])


def images(pairs: set[tuple[str, str]]) -> list[Listed]:
    return [Listed(f"{key}/{name}.jpg", key, None) for key, name in sorted(pairs)]


def splits(found: list[Listed]) -> dict[str, str | None]:
    return {image.path: image.split for image in found}


@given(files, thirds, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order_or_other_classes(
    pairs: set[tuple[str, str]], shares: tuple[float, ...], seed: int, stream: random.Random
):
    listed = images(pairs)
    whole = draw_split(listed, shares, seed)
    shuffled = list(listed)
    stream.shuffle(shuffled)
    assert draw_split(shuffled, shares, seed) == whole
    ants = [image for image in listed if image.key == "ant"]
    assert splits(draw_split(ants, shares, seed)).items() <= splits(whole).items()


@given(files, thirds, st.integers(0, 9))
def test_every_image_is_listed_once_and_every_class_has_its_shares(
    pairs: set[tuple[str, str]], shares: tuple[float, ...], seed: int
):
    found = draw_split(images(pairs), shares, seed)
    assert {image.path for image in found} == {image.path for image in images(pairs)}
    sizes = Counter(image.key for image in found)
    for key, size in sizes.items():
        counts = Counter(image.split for image in found if image.key == key)
        assert counts["train"] >= 1
        assert counts["test"] >= (size > 1)
        for split, share in zip(("train", "val", "test"), shares, strict=True):
            assert abs(counts[split] - share * size) <= 1.5


@given(files, names, st.integers(0, 9))
def test_one_more_image_moves_at_most_one_image_between_splits(
    pairs: set[tuple[str, str]], name: str, seed: int
):
    more = pairs | {("ant", name)}
    before, after = (splits(draw_split(images(found), SHARES, seed)) for found in (pairs, more))
    assert sum(before[path] != after[path] for path in before) <= 2


@given(files, st.integers(0, 9))
def test_a_copy_on_another_system_has_the_same_split(pairs: set[tuple[str, str]], seed: int):
    here = draw_split(images(pairs), SHARES, seed)
    written = [
        image._replace(path=unicodedata.normalize("NFD", image.path)) for image in images(pairs)
    ]
    there = splits(draw_split(written, SHARES, seed))
    assert {unicodedata.normalize("NFC", path): split for path, split in there.items()} == splits(
        here
    )


def test_seeds_differ_and_the_split_is_pinned():
    listed = images({("ant", f"{index}") for index in range(10)})
    found = splits(draw_split(listed, SHARES, 1))
    assert found != splits(draw_split(listed, SHARES, 2))
    trained = sorted(path for path, split in found.items() if split == "train")
    # Another split here would change the splits of all users.
    assert trained == [f"ant/{index}.jpg" for index in (1, 2, 4, 6, 7)]
