"""The images that tasks draw from: of half the classes, each once, with one label."""

import pytest

from so_clip.data.episodes.pools import ClassPools, class_pools
from so_clip.data.examples import Example, Splits


def images(name: str, label: int, count: int) -> list[Example]:
    return [Example(f"{name}_{label}_{index}.jpg", label) for index in range(count)]


def splits(train: list[Example], test=(), val=(), classes: int = 3) -> Splits:
    return Splits(train, [*val], [*test], [f"class {c}" for c in range(classes)], dataset="birds")


def of_classes(name: str, sizes) -> list[Example]:
    return [example for label, size in enumerate(sizes) for example in images(name, label, size)]


@pytest.mark.parametrize(
    ("half", "labels"), [("all", range(5)), ("base", range(3)), ("novel", range(3, 5))]
)
def test_halves_keep_the_labels_of_the_dataset(half, labels):
    pools = class_pools(splits(of_classes("a", [2, 3, 4, 5, 6]), classes=5), half, None)
    assert pools.labels == tuple(labels)
    assert pools.few_shot == tuple(tuple(images("a", label, label + 2)) for label in labels)
    assert (pools.queries, pools.notes, pools.source) == (None, (), "birds")


@pytest.mark.parametrize("split", ["test", "val"])
def test_query_images_come_from_the_named_list(split):
    lists = splits(of_classes("a", [1, 1, 1]), **{split: of_classes("q", [1, 2, 3])})
    pools = class_pools(lists, "all", split)
    assert pools.queries == tuple(tuple(images("q", label, label + 1)) for label in range(3))


def test_classes_without_enough_images_are_left_out_with_a_note():
    pools = class_pools(splits(of_classes("a", [2, 1, 3])), "all", None)
    assert pools.labels == (0, 2)
    assert pools.notes == (
        "classes with fewer images than 2 training images are left out: 1 of 3, such as 'class 1'",
    )
    pools = class_pools(
        splits(of_classes("a", [1, 0, 3]), of_classes("q", [1, 1, 0])), "all", "test"
    )
    assert pools.labels == (0,)
    assert pools.notes == (
        "classes with fewer images than 1 training and 1 test image are left out: 2 of 3, such as "
        "'class 1'",
    )


def test_a_repeated_image_is_in_a_pool_once():
    first, second = images("a", 0, 2)
    pools = class_pools(splits([first, second, first], classes=1), "all", None)
    assert pools.few_shot == ((first, second),)


def test_an_image_in_two_unicode_forms_is_one_image():
    forms = [Example("\u00e9.jpg", 0), Example("e\u0301.jpg", 0), Example("b.jpg", 0)]
    assert class_pools(splits(forms, classes=1), "all", None).few_shot == ((forms[0], forms[2]),)


def test_an_image_with_two_labels_is_in_no_pool():
    both = Example("both.jpg", 0)
    lists = [both, *of_classes("a", [2, 2]), Example("both.jpg", 1)]
    for half in ("all", "base", "novel"):  # also if the other label is in the other half
        pools = class_pools(splits(lists, classes=2), half, None)
        assert both not in {image for pool in pools.few_shot for image in pool}
        assert pools.notes == ("images with two labels are left out: 1, such as 'both.jpg'",)
    apart = splits(
        [both, *images("a", 0, 1)], [Example("both.jpg", 1), *images("q", 0, 1)], classes=1
    )
    pools = class_pools(apart, "all", "test")
    assert pools.few_shot == (tuple(images("a", 0, 1)),)
    assert pools.queries == (tuple(images("q", 0, 1)),)
    assert len(pools.notes) == 1  # the image is not called a repeated one


def test_a_training_image_is_no_query_image():
    shared = images("a", 0, 3)
    pools = class_pools(splits(shared, [*shared[:2], *images("q", 0, 1)], classes=1), "all", "test")
    assert (pools.few_shot, pools.queries) == ((tuple(shared),), (tuple(images("q", 0, 1)),))
    assert pools.notes == (
        "test images that are training images too are left out: 2, such as 'a_0_0.jpg'",
    )


def test_pools_refuse_what_could_put_an_image_into_both_parts_of_a_task():
    one, two = images("a", 0, 2)
    for few_shot, queries in [
        (((one, one),), None),
        (((one,),), None),
        (((one, two),), ((two,),)),
        (((one, two), (one, two)), None),
    ]:
        with pytest.raises(ValueError, match="birds: "):
            ClassPools("birds", (0,), few_shot, queries)
