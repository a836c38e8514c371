"""Batches of tokenized sentences: shuffled every epoch for training, sorted by length for tests."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from so_clip.data.epochs import Epochs
from so_clip.errors import InputError

# Token ids and token types of one example, unpadded.
TokenRow = tuple[Sequence[int], Sequence[int]]


def padded(rows: Sequence[TokenRow], pad_id: int, length: int | None = None) -> Tensor:
    """Return the examples as tokens_B3L int64: ids, attention mask and token types.

    Padding follows the tokens; its mask and type are 0.

    Args:
        rows: token ids and token types of each example.
        pad_id: the id of padding.
        length: of all rows, in tokens; None: the longest row's.
    """
    longest = max(len(ids) for ids, _ in rows)
    length = longest if length is None else length
    if longest > length:
        raise InputError(f"an example has {longest} tokens, more than the {length} of a batch.")
    tokens_B3L = torch.zeros(len(rows), 3, length, dtype=torch.int64)
    tokens_B3L[:, 0] = pad_id
    for tokens_3L, (ids, types) in zip(tokens_B3L, rows, strict=True):
        tokens_3L[0, : len(ids)] = torch.as_tensor(ids)
        tokens_3L[1, : len(ids)] = 1
        tokens_3L[2, : len(ids)] = torch.as_tensor(types)
    return tokens_B3L


class SentenceBatches(Epochs):
    """Shuffled batches of the few training examples, epoch after epoch.

    The examples are on the device, padded to the longest one; a batch is cut to its own longest.

    Args:
        rows: token ids and token types of each example, unpadded.
        labels: one label per example.
        batch_size: examples per batch; the last batch of an epoch may be smaller.
        pad_id: the id of padding.
        length: of all batches, in tokens; None: the longest example of each batch.
        generator: on the CPU; it alone decides the order.
        device: the device of the batches.
        drop_last: leave out the last batch of an epoch if it is smaller and not the only one.
    """

    streamed = False

    def __init__(
        self,
        rows: Sequence[TokenRow],
        labels: Sequence[int],
        *,
        batch_size: int,
        pad_id: int,
        length: int | None,
        generator: torch.Generator,
        device: torch.device | str,
        drop_last: bool = False,
    ) -> None:
        if not len(rows) or len(rows) != len(labels):
            raise InputError(f"{len(rows)} training examples, but {len(labels)} labels.")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be 1 or more.")
        super().__init__(batch_size, generator, drop_last)
        self.device = torch.device(device)
        self.labels_N = torch.as_tensor(labels, dtype=torch.int64)
        self._lengths_N = torch.tensor([length or len(ids) for ids, _ in rows])
        self._tokens_N3L = padded(rows, pad_id, length).to(self.device)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (tokens_B3L int64, labels_B int64) on the device; every example comes once.

        After `load_state_dict` the first epoch is the rest of the loaded epoch.
        """
        to_skip = self._begin()
        groups = self._order_of(len(self.labels_N)).split(self.batch_size)[to_skip:]
        for self._taken, index_B in enumerate(groups, start=to_skip + 1):
            longest = int(self._lengths_N[index_B].max())
            tokens_B3L = self._tokens_N3L[index_B.to(self.device), :, :longest]
            yield tokens_B3L, self.labels_N[index_B].to(self.device)


def test_batches(
    rows: Sequence[TokenRow], batch_size: int, pad_id: int, length: int | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the indices of examples and their tokens_B3L on the CPU, the longest examples first.

    Examples of similar length share a batch, so little of it is padding.

    Args:
        rows: token ids and token types of each example, unpadded.
        batch_size: examples per batch; the last batch may be smaller.
        pad_id: the id of padding.
        length: of all batches, in tokens; None: the longest example of each batch.
    """
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index][0]), index))
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        yield index, padded([rows[number] for number in index], pad_id, length)


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
