"""The published few-shot draws, restated as the published code makes them: on the global RNG."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded_global_random(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def few_shot_list(items, number, repeat):
    """`number` items of each label; a short label repeats items, or gives each once."""
    of_label = defaultdict(list)
    for item in items:
        of_label[item[1]].append(item)
    result = []
    for label in of_label:
        candidates = of_label[label]
        if len(candidates) >= number:
            result.extend(random.sample(candidates, number))
        elif repeat:
            result.extend(random.choices(candidates, k=number))
        else:
            result.extend(candidates)
    return result


def coop(train, val, shots, seed):
    with seeded_global_random(seed):
        drawn_train = few_shot_list(train, shots, repeat=False)
        drawn_val = few_shot_list(val, min(shots, 4), repeat=False)
    return drawn_train, drawn_val


def clip_lora(train, val, shots, seed):
    with seeded_global_random(seed):
        drawn_val = few_shot_list(val, min(4, shots), repeat=True)
        drawn_train = few_shot_list(train, shots, repeat=True)
    return drawn_train, drawn_val


def clip_lora_imagenet(train, shots, seed):
    """One joint sample per class: the first `shots` are train, the next min(4, shots) are val."""
    held_back = min(4, shots)
    of_label = defaultdict(list)
    for item in train:
        of_label[item[1]].append(item)
    drawn_train, drawn_val = [], []
    with seeded_global_random(seed):
        for candidates in of_label.values():
            both = random.sample(candidates, shots + held_back)
            for position, item in enumerate(both):
                (drawn_train if position < shots else drawn_val).append(item)
    return drawn_train, drawn_val
