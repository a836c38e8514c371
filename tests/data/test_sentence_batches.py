"""Batches of tokens: order, padding, and resume in the middle of an epoch."""

import pytest
import torch

from so_clip.data.sentence_batches import SentenceBatches, padded, test_batches
from so_clip.errors import InputError

PAD = 9
ROWS = [([1] + [number] * number, [0] + [1] * number) for number in range(1, 11)]
LABELS = [number % 3 for number in range(10)]


def made(seed: int = 1, **changes) -> SentenceBatches:
    options = {"batch_size": 4, "pad_id": PAD, "length": None, "device": "cpu"} | changes
    generator = torch.Generator().manual_seed(seed)
    return SentenceBatches(ROWS, LABELS, generator=generator, **options)


def unpadded(tokens_B3L) -> list[tuple[list[int], list[int]]]:
    kept = [tokens_3L[:, tokens_3L[1] == 1].tolist() for tokens_3L in tokens_B3L]
    return [(ids, types) for ids, _, types in kept]


def test_padding_has_its_id_and_no_mask():
    tokens_B3L = padded([([5, 6], [0, 1]), ([7], [0])], PAD)
    assert tokens_B3L.dtype == torch.int64
    assert tokens_B3L.tolist() == [[[5, 6], [1, 1], [0, 1]], [[7, PAD], [1, 0], [0, 0]]]
    assert padded([([5], [1])], PAD, length=3).tolist() == [[[5, PAD, PAD], [1, 0, 0], [1, 0, 0]]]
    with pytest.raises(InputError, match="2 tokens, more than the 1 of a batch"):
        padded([([5, 6], [0, 0])], PAD, length=1)


def test_an_epoch_has_every_example_once_in_batches_cut_to_their_longest():
    batches = made()
    rows, labels = [], []
    for tokens_B3L, labels_B in batches.epoch():
        assert tokens_B3L.dtype == labels_B.dtype == torch.int64
        assert tokens_B3L.shape[2] == tokens_B3L[:, 1].sum(1).max()
        assert (tokens_B3L[:, 0][tokens_B3L[:, 1] == 0] == PAD).all()
        rows += unpadded(tokens_B3L)
        labels += labels_B.tolist()
    order = [ROWS.index(row) for row in rows]
    assert sorted(order) == list(range(10))
    assert labels == [LABELS[index] for index in order]


def test_the_generator_alone_decides_the_order_and_epochs_differ():
    one, same, other = made(), made(), made(seed=2)
    torch.manual_seed(0)
    first = [tokens.tolist() for tokens, _ in one.epoch()]
    torch.manual_seed(1)
    assert first == [tokens.tolist() for tokens, _ in same.epoch()]
    assert first != [tokens.tolist() for tokens, _ in other.epoch()]
    assert first != [tokens.tolist() for tokens, _ in one.epoch()]


def test_a_fixed_length_pads_every_batch_to_it():
    assert {tokens.shape[2] for tokens, _ in made(length=16).epoch()} == {16}


@pytest.mark.parametrize(
    ("size", "drop_last", "counts"),
    [(4, False, [4, 4, 2]), (4, True, [4, 4]), (16, True, [10])],
)
def test_the_last_batch_is_left_out_on_demand_unless_it_is_the_only_one(size, drop_last, counts):
    batches = made(batch_size=size, drop_last=drop_last)
    assert [len(labels_B) for _, labels_B in batches.epoch()] == counts


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_loaded_position_continues_with_the_same_batches(taken):
    def stream(batches):
        while True:
            yield from batches.epoch()

    whole = made()
    ongoing = stream(whole)
    for _ in range(taken):
        next(ongoing)
    state = whole.state_dict()
    resumed = made(seed=77)
    resumed.load_state_dict(state)
    again = stream(resumed)
    for _ in range(7):
        for expected, found in zip(next(ongoing), next(again), strict=True):
            assert torch.equal(expected, found)
    assert resumed.state_dict()["taken"] == whole.state_dict()["taken"]


def test_no_example_or_another_number_of_labels_is_refused():
    with pytest.raises(InputError, match="10 training examples, but 1 labels"):
        SentenceBatches(
            ROWS,
            [1],
            batch_size=1,
            pad_id=0,
            length=None,
            generator=torch.Generator(),
            device="cpu",
        )


def test_test_batches_have_every_example_once_the_longest_first():
    found = list(test_batches(ROWS, 4, PAD, None))
    assert [tokens.shape for _, tokens in found] == [(4, 3, 11), (4, 3, 7), (2, 3, 3)]
    assert sorted(index for indices, _ in found for index in indices) == list(range(10))
    for indices, tokens_B3L in found:
        assert unpadded(tokens_B3L) == [ROWS[index] for index in indices]
